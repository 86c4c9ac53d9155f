"""Which codec for which weight: the mixes that lose least for their bytes. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """One way to keep one weight's difference; the first of its options is to drop it."""

    nbytes: int
    error: float


class Mix(NamedTuple):
    """An option for every weight, by its index; sums over all of them."""

    picks: tuple[int, ...]
    nbytes: int
    error: float


def frontier(weights: Sequence[Sequence[Option]]) -> list[Mix]:
    """Mixes from the smallest to the best, each the least error that its bytes can buy if errors
    add up: the step that saves most error per byte is taken first (Lagrange's condition)."""
    steps = []
    for weight, options in enumerate(weights):
        hull = _hull(options)
        for cheaper, dearer in itertools.pairwise(hull):
            steps.append((-_slope(options[cheaper], options[dearer]), weight, dearer))
    # slopes fall along each hull, so sorting keeps the steps of one weight in their order
    steps.sort()
    picks = [_hull(options)[0] for options in weights]
    mixes = [_mix(weights, picks)]
    for _, weight, option in steps:
        old, new = weights[weight][picks[weight]], weights[weight][option]
        picks[weight] = option
        last = mixes[-1]
        error = max(0.0, last.error - old.error + new.error)
        mixes.append(Mix(tuple(picks), last.nbytes - old.nbytes + new.nbytes, error))
    return mixes


def smallest(mixes: Sequence[Mix], passes: Callable[[Mix], bool]) -> Mix | None:
    """The first mix that passes, of mixes that get better; None if not even the last one does.

    Asks for the last one first, then halves: about log2(mixes) questions.
    """
    if not mixes or not passes(mixes[-1]):
        return None
    low, high = 0, len(mixes) - 1  # the mix at `high` passed
    while low < high:
        middle = (low + high) // 2
        if passes(mixes[middle]):
            high = middle
        else:
            low = middle + 1
    return mixes[high]


def _hull(options: Sequence[Option]) -> list[int]:
    """Indices of the options on the lower convex hull, from the smallest to the best."""
    hull: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: options[i]):
        if hull and options[i].error >= options[hull[-1]].error:
            continue
        while len(hull) > 1 and _slope(options[hull[-1]], options[i]) >= _slope(
            options[hull[-2]], options[hull[-1]]
        ):
            hull.pop()
        hull.append(i)
    return hull


def _slope(cheaper: Option, dearer: Option) -> float:
    # error saved per byte; options of equal bytes never stand beside each other in a hull
    return (cheaper.error - dearer.error) / (dearer.nbytes - cheaper.nbytes)


def _mix(weights: Sequence[Sequence[Option]], picks: Sequence[int]) -> Mix:
    chosen = [options[pick] for options, pick in zip(weights, picks, strict=True)]
    return Mix(tuple(picks), sum(o.nbytes for o in chosen), sum(o.error for o in chosen))
