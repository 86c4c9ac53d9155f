"""Choosing codecs: mixes no other greedy or exhaustive choice beats, found in few questions."""

from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from blockllm.offline.compress.choose import Mix, Option, frontier, smallest

options = st.builds(Option, st.integers(1, 50), st.floats(0, 100))
weights = st.lists(
    st.builds(
        lambda worst, others: (Option(0, worst), *others),
        st.floats(100, 200),
        st.lists(options, max_size=4),
    ),
    min_size=1,
    max_size=4,
)


@given(weights)
def test_no_mix_of_as_few_bytes_loses_less(weights: list[tuple[Option, ...]]) -> None:
    """Of all mixes on the convex hull, which the frontier's are: checked against every mix."""
    mixes = frontier(weights)
    every = [
        (sum(o.nbytes for o in chosen), sum(o.error for o in chosen))
        for chosen in itertools.product(*weights)
    ]
    for mix in mixes:
        assert mix.error <= min(e for size, e in every if size <= mix.nbytes) + 1e-6


@given(weights)
def test_the_frontier_runs_from_nothing_to_the_best(weights: list[tuple[Option, ...]]) -> None:
    mixes = frontier(weights)
    assert mixes[0].nbytes == 0 and not any(mixes[0].picks)
    best = sum(min(option.error for option in own) for own in weights)
    assert math.isclose(mixes[-1].error, best, abs_tol=1e-6)
    for smaller, larger in itertools.pairwise(mixes):
        assert smaller.nbytes < larger.nbytes and smaller.error >= larger.error - 1e-6
    for mix in mixes:
        chosen = [own[pick] for own, pick in zip(weights, mix.picks, strict=True)]
        assert mix.nbytes == sum(option.nbytes for option in chosen)


@given(st.integers(1, 200), st.integers(0, 250))
def test_the_first_mix_that_passes_is_found(count: int, first: int) -> None:
    mixes = [Mix((i,), i, float(count - i)) for i in range(count)]
    asked = []

    def passes(mix: Mix) -> bool:
        asked.append(mix)
        return mix.nbytes >= first

    found = smallest(mixes, passes)
    assert found == (mixes[first] if first < count else None)
    assert len(asked) <= math.ceil(math.log2(count)) + 1


def test_nothing_to_choose_from() -> None:
    assert smallest([], lambda mix: True) is None
    assert frontier([]) == [Mix((), 0, 0.0)]
