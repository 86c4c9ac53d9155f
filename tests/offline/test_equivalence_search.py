"""The search for swaps: within the budget, at most optimal, optimal where losses add up."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.offline.equivalence.evidence import Budget, Mapping, Quality, Site, Swap
from blockllm.offline.equivalence.search import compatible, exhaustive, search


def swap(old: str, new: str) -> Swap:
    return Swap((old,), (new,), Site("b", 1), Site("a", 1))


def quality(kl: float) -> Quality:
    return Quality(kl, 1.0, 10.0, 10.0, 100)


class World:
    """Layers with sizes, swaps with losses, and losses of pairs that come on top."""

    def __init__(
        self, sizes: dict[str, int], losses: dict[str, float], pairs: dict[frozenset[str], float]
    ) -> None:
        self.sizes = sizes
        self.losses = losses
        self.pairs = pairs
        self.asked: list[Mapping] = []

    def size(self, mapping: Mapping) -> int:
        return sum(size for name, size in self.sizes.items() if name not in mapping)

    def measure(self, mapping: Mapping) -> dict[str, Quality]:
        self.asked.append(mapping)
        if not mapping:
            return {}
        alone = sum(self.losses[name] for name in mapping)
        both = (self.pairs.get(frozenset(pair), 0.0) for pair in combinations(sorted(mapping), 2))
        return {"b": quality(max(0.0, alone + sum(both)))}


def test_the_set_is_measured_together_not_added() -> None:
    swaps = [swap("b1", "a1"), swap("b2", "a2"), swap("b3", "a3")]
    losses = {"b1": 0.01, "b2": 0.011, "b3": 0.012}
    world = World(dict.fromkeys(losses, 10), losses, {frozenset(("b1", "b2")): 1.0})
    plan = search(swaps, world.size, world.measure, Budget(max_kl=0.05))
    assert plan.mapping == {"b1": "a1", "b3": "a3"}
    assert (plan.saved_bytes, plan.total_bytes) == (20, 30)
    assert plan.quality["b"].kl == pytest.approx(0.022)
    assert {"b1": "a1", "b2": "a2"} in world.asked


def test_errors_may_cancel() -> None:
    """An offer is measured again behind the swaps that were made, and may become the better one."""
    swaps = [swap("b1", "a1"), swap("b2", "a2"), swap("b3", "a3")]
    losses = {"b1": 0.01, "b2": 0.03, "b3": 0.02}
    pairs = {frozenset(("b1", "b3")): 0.05, frozenset(("b1", "b2")): -0.02}
    world = World(dict.fromkeys(losses, 10), losses, pairs)
    plan = search(swaps, world.size, world.measure, Budget(max_kl=0.04))
    assert set(plan.mapping) == {"b1", "b2"}


def test_nothing_is_replaced_twice_and_no_substitute_is_replaced() -> None:
    swaps = [swap(*pair) for pair in permutations(("a1", "b1", "c1"), 2)]
    world = World({"a1": 10, "b1": 10, "c1": 10}, dict.fromkeys(("a1", "b1", "c1"), 0.01), {})
    plan = search(swaps, world.size, world.measure, Budget(max_kl=1))
    assert not set(plan.mapping) & set(plan.mapping.values())
    best = exhaustive(swaps, world.size, world.measure, Budget(max_kl=1))
    assert plan.saved_bytes == best.saved_bytes == 20
    assert not compatible({"b1": "a1"}, swap("a1", "c1"))
    assert not compatible({"b1": "a1"}, swap("c1", "b1"))
    assert compatible({"b1": "a1"}, swap("c1", "a1"))


def test_no_budget_no_swap() -> None:
    world = World({"b1": 10}, {"b1": 0.01}, {})
    plan = search([swap("b1", "a1")], world.size, world.measure, Budget(max_kl=0.001))
    assert (plan.swaps, plan.saved_bytes, plan.quality) == ((), 0, {})


@pytest.mark.parametrize(
    ("budget", "allowed"),
    [
        (Budget(), True),
        (Budget(max_kl=0.1), True),
        (Budget(max_kl=0.04), False),
        (Budget(max_rise=0.011), True),
        (Budget(max_rise=0.009), False),
        (Budget(min_agreement=0.9), True),
        (Budget(max_kl=0.1, min_agreement=0.91), False),
    ],
)
def test_budget(budget: Budget, allowed: bool) -> None:
    found = Quality(0.05, 0.9, 101.0, 100.0, 10)
    assert budget.allows({"good": quality(0.0), "b": found}) is allowed


NAMES = ("b1", "b2", "b3", "b4", "b5")
LOSSES = st.floats(0, 1, allow_nan=False)


@given(
    st.lists(st.integers(1, 5), min_size=5, max_size=5),
    st.lists(LOSSES, min_size=5, max_size=5),
    st.dictionaries(
        st.sampled_from([frozenset(pair) for pair in combinations(NAMES, 2)]), st.floats(-1, 1)
    ),
    LOSSES,
)
def test_allowed_and_at_most_optimal(
    sizes: list[int], losses: list[float], pairs: dict[frozenset[str], float], limit: float
) -> None:
    world = World(
        dict(zip(NAMES, sizes, strict=True)), dict(zip(NAMES, losses, strict=True)), pairs
    )
    swaps = [swap(name, name.replace("b", "a")) for name in NAMES]
    budget = Budget(max_kl=limit)
    plan = search(swaps, world.size, world.measure, budget)
    best = exhaustive(swaps, world.size, world.measure, budget)
    assert budget.allows(plan.quality)
    assert plan.quality == world.measure(plan.mapping)
    assert plan.saved_bytes <= best.saved_bytes


@given(st.lists(LOSSES, min_size=5, max_size=5), LOSSES)
def test_optimal_for_equal_layers_whose_losses_add_up(losses: list[float], limit: float) -> None:
    world = World(dict.fromkeys(NAMES, 7), dict(zip(NAMES, losses, strict=True)), {})
    swaps = [swap(name, name.replace("b", "a")) for name in NAMES]
    plans = [
        find(swaps, world.size, world.measure, Budget(max_kl=limit))
        for find in (search, exhaustive)
    ]
    assert plans[0].saved_bytes == plans[1].saved_bytes
