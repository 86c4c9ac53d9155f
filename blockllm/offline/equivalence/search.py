"""Which swaps to make together: the most bytes saved within a quality budget. Pure: how good the
models are after a set of swaps is asked of a callable.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

from blockllm.offline.equivalence.evidence import Budget, Mapping, Quality, Swap, SwapPlan

Measure = Callable[[Mapping], dict[str, Quality]]  # qualities of the models that the swaps change
Size = Callable[[Mapping], int]  # bytes of all models after the swaps


class _Offer(NamedTuple):
    """A swap as it was when last measured; the least loss per byte comes first."""

    rate: float
    number: int  # in the order of the candidates: breaks ties, the same on every run
    round: int  # how many swaps had been made


def search(swaps: Sequence[Swap], size: Size, measure: Measure, budget: Budget) -> SwapPlan:
    """Make one swap after the other, the one that loses least per byte saved first, measuring the
    whole set each time; a swap that breaks the budget or saves nothing is left out.

    An offer measured before the last swap was made is measured again when its turn comes, and
    goes back into the queue if it became worse than the next.
    """
    chosen: list[Swap] = []
    before = size({})
    offers = [
        _Offer(_rate(measure, size, {}, swap), number, 0) for number, swap in enumerate(swaps)
    ]
    heapq.heapify(offers)
    while offers:
        offer = heapq.heappop(offers)
        swap, mapping = swaps[offer.number], _mapping(chosen)
        trial = mapping | swap.mapping
        is_useful = compatible(mapping, swap) and size(trial) < size(mapping)
        if not is_useful or not budget.allows(measure(trial)):
            continue
        if offer.round < len(chosen):
            rate = _rate(measure, size, mapping, swap)
            if offers and rate > offers[0].rate:
                heapq.heappush(offers, _Offer(rate, offer.number, len(chosen)))
                continue
        chosen.append(swap)
    return _plan(chosen, before, size, measure)


def exhaustive(swaps: Sequence[Swap], size: Size, measure: Measure, budget: Budget) -> SwapPlan:
    """The best of all sets of swaps: the plain twin of `search`, for a dozen swaps at most."""
    before = size({})
    best = _plan([], before, size, measure)
    for count in range(1, len(swaps) + 1):
        for chosen in combinations(swaps, count):
            if not _is_consistent(chosen):
                continue
            plan = _plan(chosen, before, size, measure)
            if plan.saved_bytes > best.saved_bytes and budget.allows(plan.quality):
                best = plan
    return best


def compatible(mapping: Mapping, swap: Swap) -> bool:
    """Whether a swap can be added to others: nothing is replaced twice, no layer that stands in
    for others is replaced itself.
    """
    kept = set(mapping.values())
    replaced = any(old in mapping or old in kept for old in swap.old)
    return not replaced and not any(new in mapping for new in swap.new)


def _is_consistent(swaps: Sequence[Swap]) -> bool:
    return all(compatible(_mapping(swaps[:i]), swap) for i, swap in enumerate(swaps))


def _mapping(swaps: Sequence[Swap]) -> Mapping:
    return {old: new for swap in swaps for old, new in swap.mapping.items()}


def _rate(measure: Measure, size: Size, mapping: Mapping, swap: Swap) -> float:
    """Nats lost, all models together, per byte saved by one more swap."""
    trial = mapping | swap.mapping
    saved = size(mapping) - size(trial)
    lost = _loss(measure(trial)) - _loss(measure(mapping))
    return lost / saved if saved > 0 else float("inf")


def _loss(qualities: dict[str, Quality]) -> float:
    return sum(quality.kl for quality in qualities.values())


def _plan(swaps: Sequence[Swap], before: int, size: Size, measure: Measure) -> SwapPlan:
    mapping = _mapping(swaps)
    return SwapPlan(tuple(swaps), before - size(mapping), before, measure(mapping))
