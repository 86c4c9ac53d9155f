"""Sampling against plain definitions: filters, penalties, seeds, log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockllm.chain import plan_spans
from blockllm.core import (
    Block,
    Chain,
    ChainEntry,
    EmbedFunction,
    HeadFunction,
    Layer,
    Request,
    Sampling,
)
from blockllm.engine.kernels.cpu import native
from blockllm.engine.kv.cache import RouteKV
from blockllm.engine.sampling import sample
from blockllm.engine.sampling.uniform import uniforms
from blockllm.engine.sequence.sequence import RouteState, Sequence

VOCAB = 12


@pytest.fixture(autouse=True, scope="module", params=["kernel", "twin"])
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every way to draw follows the same definitions."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "twin":
            patch.setattr(native, "available", lambda device: False)
        yield


def make_sequence(prompt: list[int] | None = None, output: tuple[int, ...] = (), **options: Any):
    embed = Layer("e", EmbedFunction(VOCAB, 4), {})
    head = Layer("h", HeadFunction(VOCAB, 4, 1e-5), {})
    entries = (ChainEntry(Block("e", (embed,))), ChainEntry(Block("h", (head,))))
    chain = Chain("m", entries, max_context=99, eos_ids=(0,))
    route = plan_spans([chain]).routes["m"]
    state = RouteState(0, route, (), RouteKV((), (), ()), 0, 99)
    sampling = Sampling(max_tokens=50, **options)
    sequence = Sequence(Request("r", "m", tuple(prompt or [1]), sampling), state, 16)
    for token in output:
        sequence.append(token)
    return sequence


def pick(logits: list[float] | torch.Tensor, sequence: Sequence) -> int | None:
    rows = torch.as_tensor(logits, dtype=torch.float32)[None].clone()
    return sample(rows, [sequence])[0].token


def frequencies(logits: torch.Tensor, count: int, **options: Any) -> np.ndarray:
    sequences = [make_sequence(seed=i, **options) for i in range(count)]
    chosen = sample(logits.repeat(count, 1), sequences)
    return np.bincount([c.token for c in chosen], minlength=VOCAB) / count


LOGITS = torch.linspace(0, 3, VOCAB)


def test_greedy_takes_the_best_and_the_first_of_equals() -> None:
    assert pick([0.0, 5.0, 5.0, *[0.0] * 9], make_sequence(temperature=0.0)) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_plain_sampling_follows_the_softmax(temperature: float) -> None:
    seen = frequencies(LOGITS, 4000, temperature=temperature)
    expected = torch.softmax(LOGITS / temperature, -1).numpy()
    assert np.abs(seen - expected).max() < 0.03


@pytest.mark.parametrize(
    "options",
    [{"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.4}, {"top_k": 5, "top_p": 0.6, "min_p": 0.1}],
)
def test_filters_keep_exactly_the_tokens_of_their_definition(options: dict[str, Any]) -> None:
    p = torch.softmax(LOGITS, -1)
    keep = p >= options.get("min_p", 0.0) * p.max()
    p = torch.where(keep, p, 0.0)
    order = p.argsort(descending=True)
    p[order[options.get("top_k", VOCAB) :]] = 0
    before = p[order].cumsum(0) - p[order]
    p[order[before >= options.get("top_p", 1.0) * p.sum()]] = 0
    expected = (p / p.sum()).numpy()
    seen = frequencies(LOGITS, 4000, **options)
    assert set(np.flatnonzero(seen)) <= set(np.flatnonzero(expected))
    assert np.abs(seen - expected).max() < 0.03


def test_penalties_follow_vllm() -> None:
    logits = torch.full((VOCAB,), -1.0)
    logits[3], logits[4], logits[5] = 2.0, 1.9, 1.8
    sequence = make_sequence([1, 4], (3, 3), temperature=0.0, repetition_penalty=2.0)
    assert pick(logits, sequence) == 5  # 3 and 4 halved
    sequence = make_sequence([1, 4], (3, 3), temperature=0.0, frequency_penalty=0.06)
    assert pick(logits, sequence) == 4  # 3 lost 0.12, the prompt's 4 nothing
    sequence = make_sequence([1], (3, 4), temperature=0.0, presence_penalty=0.5)
    assert pick(logits, sequence) == 5


def test_bias_and_min_tokens() -> None:
    logits = torch.zeros(VOCAB)
    assert pick(logits, make_sequence(temperature=0.0, logit_bias={7: 1.0})) == 7
    logits[0] = 9.0
    assert pick(logits, make_sequence(temperature=0.0, min_tokens=1)) == 1
    assert pick(logits, make_sequence(None, (4,), temperature=0.0, min_tokens=1)) == 0


def test_logprobs_are_the_models_own() -> None:
    sequence = make_sequence(temperature=0.0, logprobs=2, logit_bias={0: 100.0})
    (sampled,) = sample(LOGITS[None].clone(), [sequence])
    expected = torch.log_softmax(LOGITS, -1)
    assert sampled.token == 0 and sampled.logprobs is not None
    assert sampled.logprobs.chosen == pytest.approx(float(expected[0]))
    assert [token for token, _ in sampled.logprobs.top] == [VOCAB - 1, VOCAB - 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"seed": 1}, {"seed": 1, "top_p": 0.9}])
def test_rows_that_are_not_finite_fail_alone(value: float, options: dict[str, Any]) -> None:
    rows = torch.stack([LOGITS, torch.full((VOCAB,), value), LOGITS])
    sequences = [make_sequence(**options) for _ in range(3)]
    first, second, third = (each.token for each in sample(rows, sequences))
    assert second is None and first == third is not None
    if options == {"temperature": 0.0}:
        assert first == VOCAB - 1


OPTIONS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0]),
        "top_p": st.sampled_from([0.4, 1.0]),
        "top_k": st.sampled_from([0, 3]),
        "min_p": st.sampled_from([0.0, 0.2]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "presence_penalty": st.sampled_from([0.0, 0.5]),
        "min_tokens": st.sampled_from([0, 9]),
        "logprobs": st.sampled_from([None, 0, 2]),
        "seed": st.integers(0, 2**63),
    }
)


@settings(max_examples=40, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=6), st.integers(0, 99))
def test_a_row_does_not_depend_on_its_neighbours(batch: list[dict[str, Any]], seed: int) -> None:
    logits = torch.randn(len(batch), VOCAB, generator=torch.Generator().manual_seed(seed))
    sequences = [make_sequence([1, 2], (3, 4), **options) for options in batch]
    together = sample(logits.clone(), sequences)
    for i, sequence in enumerate(sequences):
        (alone,) = sample(logits[i : i + 1].clone(), [sequence])
        assert alone == together[i]


def test_uniforms_are_uniform_and_uncorrelated_over_positions() -> None:
    draws = uniforms(np.full(20000, 7, np.uint64), np.arange(20000, dtype=np.uint64))
    assert draws.min() >= 0 and draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.03
