"""Greedy fp32 tokens equal the reference's, and log-probabilities within 1e-3, in every scenario.

Each scenario runs a model in another way through the engine; the reference runs it once.
"""

from __future__ import annotations

import pytest
import torch

from blockllm.chain import plan_spans
from blockllm.config import EngineSettings
from blockllm.core import Sampling
from blockllm.engine import Engine
from blockllm.engine.device.budget import Precision, plan_kv, weight_bytes
from blockllm.engine.kernels.matmul import packs
from tests.driver import Answer, greedy, request, run, settings, step
from tests.oracle.conftest import (
    ALL_MODELS,
    FAMILY_MODELS,
    NEW_TOKENS,
    OTHER_TOKENS,
    PROMPT,
    Lab,
    Report,
    prompt_of,
)

TOLERANCE = 1e-3  # of log-probabilities; the largest difference seen is in docs/oracle.md


def with_logprobs(max_tokens: int) -> Sampling:
    return greedy(max_tokens, logprobs=5)


def check(lab: Lab, model: str, seed: int, answer: Answer) -> float:
    """Compare with the reference; returns the largest difference of a log-probability."""
    expected = lab.expected(model, seed)
    assert answer.tokens == expected.tokens[: len(answer.tokens)], model
    worst = 0.0
    for row, logprobs in zip(expected.logprobs, answer.logprobs, strict=False):
        for token, value in logprobs.top:
            worst = max(worst, abs(float(row[token]) - value))
    assert worst < TOLERANCE, model
    return worst


@pytest.mark.parametrize("model", ALL_MODELS)
def test_alone(lab: Lab, report: Report, model: str) -> None:
    engine = Engine(lab.zoo, [model], settings())
    answer = run(engine, [request("r", model, prompt_of(0), with_logprobs(NEW_TOKENS))])["r"]
    assert len(answer.tokens) == NEW_TOKENS
    report.note(model, "alone, 256", f"{check(lab, model, 0, answer):.0e}")


def test_all_models_in_one_batch(lab: Lab, report: Report) -> None:
    models = [*ALL_MODELS, *FAMILY_MODELS]
    engine = Engine(lab.zoo, None, settings(max_sequences=len(models), memory="512MiB"))
    requests = [
        request(f"{i}", model, prompt_of(0), with_logprobs(NEW_TOKENS))
        for i, model in enumerate(models)
    ]
    answers = run(engine, requests)
    for i, model in enumerate(models):
        assert len(answers[f"{i}"].tokens) == NEW_TOKENS
        report.note(model, "mixed, 256", f"{check(lab, model, 0, answers[f'{i}']):.0e}")


@pytest.mark.parametrize("model", ALL_MODELS)
def test_chunked_at_every_boundary(lab: Lab, report: Report, model: str) -> None:
    worst = 0.0
    for rows in range(1, PROMPT + 1):
        engine = Engine(lab.zoo, [model], settings(max_rows=rows, max_sequences=1))
        answer = run(engine, [request("r", model, prompt_of(0), with_logprobs(4))])["r"]
        worst = max(worst, check(lab, model, 0, answer))
    report.note(model, "cut at 1..40", f"{worst:.0e}")


@pytest.mark.parametrize("model", ALL_MODELS)
def test_prefix_hit(lab: Lab, report: Report, model: str) -> None:
    engine = Engine(lab.zoo, [model], settings(page_size=8))
    run(engine, [request("first", model, prompt_of(0), greedy(8))])
    answer = run(engine, [request("r", model, prompt_of(0), with_logprobs(48))])["r"]
    assert answer.cached_tokens == PROMPT - 1  # the last token is always computed
    report.note(model, "prefix hit", f"{check(lab, model, 0, answer):.0e}")


@pytest.mark.parametrize("model", ALL_MODELS)
def test_preempted(lab: Lab, report: Report, model: str) -> None:
    """Pages for less than two sequences: two cannot finish without preemption."""
    engine = Engine(lab.zoo, [model], small(lab, model, tokens=2 * (PROMPT + OTHER_TOKENS) - 16))
    sampling = with_logprobs(OTHER_TOKENS)
    requests = [request(f"{i}", model, prompt_of(i), sampling) for i in range(2)]
    answers = run(engine, requests)
    assert engine.stats().preemptions > 0
    worst = max(check(lab, model, i, answers[f"{i}"]) for i in range(2))
    report.note(model, "preempted", f"{worst:.0e}")


@pytest.mark.parametrize("model", ALL_MODELS)
def test_after_a_neighbour_was_cancelled(lab: Lab, report: Report, model: str) -> None:
    engine = Engine(lab.zoo, [model], settings(prefix_cache=False))
    answers = {"0": Answer()}
    for i in range(2):
        engine.submit(request(f"{i}", model, prompt_of(i), with_logprobs(48)))
    while len(answers["0"].tokens) < 5:
        step(engine, answers)
    engine.cancel("0")
    engine.submit(request("2", model, prompt_of(0), with_logprobs(48)))
    while engine.has_work:
        step(engine, answers)
    engine.check_books()
    assert len(answers["0"].tokens) == 5
    worst = max(check(lab, model, 1, answers["1"]), check(lab, model, 0, answers["2"]))
    report.note(model, "cancelled", f"{worst:.0e}")


def small(lab: Lab, model: str, tokens: int) -> EngineSettings:
    """Settings whose memory budget holds the weights and pages for about `tokens` tokens."""
    base = settings(prefix_cache=False)
    chains = lab.zoo.chains([model])
    precision = Precision(4, keeps_narrow=packs(torch.device("cpu"), torch.float32))
    (kv,) = plan_kv(plan_spans(chains.values()), base, precision, 1 << 30)
    pages = kv.max_bundles * -(-tokens // base.page_size) + 1
    budget = weight_bytes(chains.values(), precision) + pages * kv.page_bytes(base.page_size, 4)
    return settings(prefix_cache=False, memory=str(budget))
