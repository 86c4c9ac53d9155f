"""Bounded filtering equals sorting the whole vocabulary; counts equal a rescan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockllm.engine.kernels.cpu import native
from blockllm.engine.sampling.choose import Filters, TopPick, pick_sorted, pick_top
from blockllm.engine.sequence.token_counts import TokenCounts


def weights_of(kind: str, rows: int, vocab: int, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(rows, vocab, generator=generator)
    if kind == "equal":  # whole runs of equal weights, also across the edge of the candidates
        return (noise.round() / 4).softmax(-1)
    if kind == "cut":  # as min_p leaves them
        weights = (3 * noise).softmax(-1)
        return weights.masked_fill(weights < 0.1 * weights.amax(-1, keepdim=True), 0.0)
    return ({"flat": 0.01, "peaked": 6.0}[kind] * noise).softmax(-1)


def finish(picked: TopPick) -> torch.Tensor:
    """The choices once open rows were chosen again."""
    if picked.is_open is None:
        return picked.tokens
    rows = picked.is_open.nonzero()[:, 0]
    return picked.tokens.index_copy(0, rows, picked.again(rows))


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from(["equal", "cut", "flat", "peaked"]),
    st.sampled_from([3, 257, 258, 900]),
    st.lists(
        st.tuples(st.sampled_from([1, 2, 50, 255, 300, 10**6]), st.sampled_from([0.1, 0.9, 1.0])),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**32),
)
def test_bounded_filtering_equals_a_full_sort(
    kind: str, vocab: int, filters: list[tuple[int, float]], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = weights_of(kind, len(filters), vocab, generator)
    k = torch.tensor([min(k, vocab) for k, _ in filters])
    most = max((int(each) for each in k if each < vocab), default=0)
    both = Filters(k, torch.tensor([p for _, p in filters], dtype=torch.float64))
    for draw in (0.0, 0.3, 0.999999, 1 - 2**-40):
        u = torch.full((len(filters),), draw, dtype=torch.float64)
        assert torch.equal(finish(pick_top(weights, both, most, u)), pick_sorted(weights, both, u))


@pytest.mark.parametrize("kind", ["flat", "equal"])
def test_a_row_that_needs_more_candidates_than_are_looked_at(kind: str) -> None:
    weights = weights_of(kind, 64, 4000, torch.Generator().manual_seed(0))
    both = Filters(torch.full((64,), 4000), torch.full((64,), 0.95, dtype=torch.float64))
    u = torch.linspace(0, 0.999, 64, dtype=torch.float64)
    picked = pick_top(weights, both, 0, u)
    assert picked.is_open is not None and picked.is_open.any()
    chosen = finish(picked)
    assert torch.equal(chosen, pick_sorted(weights, both, u))
    ranks = (weights > weights.gather(-1, chosen[:, None])).sum(-1)
    assert int(ranks.max()) > 256


@given(st.lists(st.integers(0, 5), max_size=30), st.lists(st.integers(1, 4), max_size=9))
def test_counts_follow_a_growing_text(text: list[int], steps: list[int]) -> None:
    tally, tokens = TokenCounts(), np.array(text, np.int64)
    for end in [*np.minimum(np.cumsum(steps), len(text)).tolist(), len(text)]:
        seen, counts = tally.count(tokens[:end])
        expected = np.unique(tokens[:end], return_counts=True)
        order = seen.argsort()
        assert np.array_equal(seen[order], expected[0])
        assert np.array_equal(counts[order], expected[1])


def allows(
    logits: torch.Tensor, token: int, temperature: float, min_p: float, k: int, p: float, u: float
) -> bool:
    """Whether the definition, in double precision, gives the token: equal logits in order of index,
    and either of two neighbours where less than 1e-6 of the mass decides between them."""
    weights = ((logits.double() - logits.max()) / temperature).exp()
    weights[weights < min_p * (1 - 1e-6)] = 0
    filtered = k < len(weights) or p < 1
    order = weights.argsort(descending=True, stable=True) if filtered else torch.arange(len(logits))
    weights = weights[order]
    after = weights.cumsum(0)
    before = after - weights
    total, slack = after[min(k, len(weights)) - 1], 1e-6 * after[-1]
    fewest = max(1, int((before[:k] < p * total - slack).sum()))
    most = max(1, int((before[:k] < p * total + slack).sum()))
    place = int((order == token).nonzero())
    reached = before[place] <= u * after[most - 1] + slack
    return (
        place < most
        and weights[place] > 0
        and reached
        and after[place] >= u * after[fewest - 1] - slack
    )


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([1, 7, 256, 257, 1500]),
    st.sampled_from([0.05, 1.0, 4.0]),
    st.lists(
        st.tuples(
            st.sampled_from([1e-5, 0.7, 1.0, 3.0]),
            st.sampled_from([0.0, 0.05, 1.0]),
            st.sampled_from([1, 2, 50, 1499, 1500]),
            st.sampled_from([0.1, 0.9, 0.99999, 1.0]),
            st.sampled_from([0.0, 0.3, 0.999999, 1 - 2**-53]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(0, 2**32),
)
def test_the_kernel_draws_what_the_definition_says(
    vocab: int, spread: float, options: list[tuple[float, float, int, float, float]], seed: int
) -> None:
    if not native.available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    generator = torch.Generator().manual_seed(seed)
    # on a grid, so that logits are equal or well apart
    logits = (torch.randn(2 * len(options), vocab, generator=generator) * spread * 4).round() / 4
    options = [(t, least, min(k, vocab), p, u) for t, least, k, p, u in options]
    rows = torch.arange(len(options)) * 2
    t, least, k, p, u = (torch.tensor(column) for column in zip(*options, strict=True))
    tokens = native.draw(logits, 2, rows, u.double(), t, least, k, p.double())
    for row, token, each in zip(logits[::2], tokens.tolist(), options, strict=True):
        assert allows(row, token, *each)


@pytest.mark.parametrize("vocab", [1, 7, 64, 1501])
def test_the_kernel_finds_the_first_of_the_largest(vocab: int) -> None:
    if not native.available(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    generator = torch.Generator().manual_seed(vocab)
    logits = torch.randint(-9, 9, (40, vocab), generator=generator).float()
    for row, value in enumerate(("nan", "inf", "-inf")):
        logits[row, 0] = logits[3 + row, vocab // 2] = float(value)
    logits[6] = float("-inf")
    tokens, finite = native.best(logits, 2)
    largest = logits.amax(-1)  # NaN if there is one
    assert torch.equal(finite, largest.isfinite())
    assert torch.equal(tokens[finite], (logits == largest[:, None]).int().argmax(-1)[finite])
