"""Every delta kind answers as the reference does, alone and in company, however it is run."""

from __future__ import annotations

import pytest
import torch

from blockllm.chain import plan_spans
from blockllm.engine import Engine
from blockllm.engine.device.budget import Precision, plan_kv, weight_bytes
from blockllm.engine.kernels.matmul import packs
from tests.driver import Answer, greedy, request, run, settings
from tests.oracle.conftest import Report
from tests.oracle.delta_cases import BASES, CASES, PROMPT, TOKENS, DeltaLab, prompt_of

MODELS = [*BASES, "tuned", *CASES]
TOLERANCE = 1e-3  # of log-probabilities


@pytest.fixture(scope="module")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> DeltaLab:
    return DeltaLab(tmp_path_factory.mktemp("deltas"))


def check(lab: DeltaLab, model: str, seed: int, answer: Answer) -> float:
    """Compare with the reference; returns the largest difference of a log-probability."""
    expected = lab.expected(model, seed)
    assert answer.tokens == expected.tokens[: len(answer.tokens)], model
    worst = 0.0
    for row, logprobs in zip(expected.logprobs, answer.logprobs, strict=False):
        for token, value in logprobs.top:
            worst = max(worst, abs(float(row[token]) - value))
    assert worst < TOLERANCE, model
    return worst


def test_every_delta_changes_the_answer(deltas: DeltaLab) -> None:
    for model, case in CASES.items():
        assert deltas.zoo.card(model).kind == case.kind
        below = deltas.expected(case.base, 0).logprobs[0]
        own = deltas.expected(model, 0).logprobs[0, : len(below)]  # it may have more tokens
        difference = (own - below)[own.isfinite()].abs()  # infinite where likely in one only
        assert difference.max() > 0.01, model


@pytest.mark.parametrize("model", CASES)
def test_alone_and_again(deltas: DeltaLab, report: Report, model: str) -> None:
    """The second request finds the first one's pages in the prefix index."""
    engine = Engine(deltas.zoo, [model], settings(page_size=8))
    virtual = deltas.zoo.chain(model).num_virtual
    # whole pages, and never the last token
    found = min((virtual + PROMPT) // 8 * 8, virtual + PROMPT - 1) - virtual
    for name, scenario in (("r", "alone"), ("again", "prefix hit")):
        asked = request(name, model, prompt_of(0), greedy(TOKENS, logprobs=5))
        answer = run(engine, [asked])[name]
        assert len(answer.tokens) == TOKENS
        assert answer.cached_tokens == (found if name == "again" else 0)
        report.note(model, scenario, f"{check(deltas, model, 0, answer):.0e}")


def test_all_kinds_in_one_batch(deltas: DeltaLab, report: Report) -> None:
    engine = Engine(deltas.zoo, None, settings(max_sequences=2 * len(MODELS), memory="512MiB"))
    requests = [
        request(f"{model}-{seed}", model, prompt_of(seed), greedy(TOKENS, logprobs=5))
        for seed in range(2)
        for model in MODELS
    ]
    answers = run(engine, requests)
    for model in MODELS:
        found = [check(deltas, model, seed, answers[f"{model}-{seed}"]) for seed in range(2)]
        report.note(model, "mixed batch", f"{max(found):.0e}")


@pytest.mark.parametrize("model", CASES)
def test_chunked(deltas: DeltaLab, report: Report, model: str) -> None:
    """With the bare base beside it, in few rows at a time."""
    base, worst = _bare(model), 0.0
    for rows in (2, 3, 5, 7, 11, 16):
        engine = Engine(deltas.zoo, [base, model], settings(max_rows=rows, max_sequences=2))
        asked = [request(m, m, prompt_of(0), greedy(6, logprobs=5)) for m in (model, base)]
        answers = run(engine, asked)
        worst = max(worst, *(check(deltas, m, 0, answers[m]) for m in (model, base)))
    report.note(model, "chunked", f"{worst:.0e}")


@pytest.mark.parametrize("model", CASES)
def test_preempted(deltas: DeltaLab, report: Report, model: str) -> None:
    """Pages for less than two sequences: two cannot finish without preemption."""
    chain = deltas.zoo.chain(model)
    base = settings(prefix_cache=False)
    precision = Precision(4, keeps_narrow=packs(torch.device("cpu"), torch.float32))
    (kv,) = plan_kv(plan_spans([chain]), base, precision, 1 << 30)
    tokens = 2 * (PROMPT + TOKENS + chain.num_virtual) - 16
    pages = kv.max_bundles * -(-tokens // base.page_size) + 1
    budget = weight_bytes([chain], precision) + pages * kv.page_bytes(base.page_size, 4)
    engine = Engine(deltas.zoo, [model], settings(prefix_cache=False, memory=str(budget)))
    requests = [request(f"{i}", model, prompt_of(i), greedy(TOKENS, logprobs=5)) for i in range(2)]
    answers = run(engine, requests)
    assert engine.stats().preemptions > 0
    worst = max(check(deltas, model, i, answers[f"{i}"]) for i in range(2))
    report.note(model, "preempted", f"{worst:.0e}")


def test_kinds_do_not_share_pages(deltas: DeltaLab) -> None:
    """Models that differ in a delta only find none of each other's pages behind it."""
    models = ["base", "dora", "ia3", "ln", "houlsby", "prefix", "prompt", "rslora", "stack"]
    engine = Engine(deltas.zoo, models, settings(page_size=8))
    for model in models:
        answer = run(engine, [request(model, model, prompt_of(0), greedy(2, logprobs=1))])[model]
        assert answer.cached_tokens == 0, model
        check(deltas, model, 0, answer)


def _bare(model: str) -> str:
    while model in CASES:
        model = CASES[model].base
    return model
