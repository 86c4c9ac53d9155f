"""The turn policy as a pure function: rows, preemption and admission."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from blockllm.engine.schedule import Candidate, admit_rows, plan_running


@dataclass(eq=False)
class Fake:
    remaining: int
    held: int = 0  # pages


def pages_for(sequence: Fake, rows: int) -> int:
    return rows


def pages_of(sequence: Fake) -> int:
    return sequence.held


def test_single_rows_go_before_prompts_and_budget_is_kept() -> None:
    prompt, first, second = Fake(100), Fake(1), Fake(1)
    plan = plan_running([prompt, first, second], 10, 1000, pages_for, pages_of)
    assert {id(s): r for s, r in plan.grants} == {id(prompt): 8, id(first): 1, id(second): 1}
    assert plan.preempted == []


def test_the_youngest_is_preempted_first_and_the_oldest_keeps_its_rows() -> None:
    old, middle, young = Fake(1, held=4), Fake(1, held=4), Fake(1, held=4)
    plan = plan_running([old, middle, young], 10, 0, pages_for, pages_of)
    assert plan.preempted == [young]
    assert [s for s, _ in plan.grants] == [old, middle]


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), max_size=12),
    st.integers(12, 64),
    st.integers(0, 60),
)
def test_plans_never_exceed_rows_or_pages(
    shapes: list[tuple[int, int]], max_rows: int, available: int
) -> None:
    running = [Fake(remaining, held) for remaining, held in shapes]
    plan = plan_running(running, max_rows, available, pages_for, pages_of)
    assert sum(rows for _, rows in plan.grants) <= max_rows
    freed = sum(s.held for s in plan.preempted)
    assert sum(rows for _, rows in plan.grants) <= available + freed
    assert plan.preempted == list(reversed(running[len(running) - len(plan.preempted) :]))
    assert not {id(s) for s, _ in plan.grants} & {id(s) for s in plan.preempted}


def test_admission_keeps_a_reserve_unless_the_pool_is_idle() -> None:
    candidate = Candidate(remaining=5, pages_now=8, blocked=False)
    assert admit_rows(candidate, 100, available=9, reserve=2, idle=False) == 0
    assert admit_rows(candidate, 100, available=9, reserve=2, idle=True) == 5
    assert admit_rows(candidate, 3, available=90, reserve=2, idle=False) == 3
    assert admit_rows(candidate._replace(blocked=True), 100, 90, 0, True) == 0
