"""Policies as pure functions: rows, preemption, admission, groups of stops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.engine.policies import ByModel, Chunked, Layered
from blockllm.engine.policies.by_model import model_order
from blockllm.engine.policies.chunked import admit_rows
from blockllm.engine.work import Admission, PausedRows, Plan, Work, check, full_work
from tests.engine.fake_view import FakePages, FakeSequence, make_view


def rows_of(plan: Plan) -> dict[int, int]:
    return {work.sequence: work.rows for work in plan.work}


def test_single_rows_go_before_prompts_and_budget_is_kept() -> None:
    prompt, first, second = FakeSequence(100), FakeSequence(1), FakeSequence(1)
    plan = Chunked().plan(make_view([prompt, first, second], max_rows=10))
    assert rows_of(plan) == {prompt.number: 8, first.number: 1, second.number: 1}
    assert plan.preempt == plan.admit == ()


def test_the_youngest_is_preempted_first_and_the_oldest_keeps_its_rows() -> None:
    old, middle, young = (FakeSequence(1, held=4) for _ in range(3))
    plan = Chunked().plan(make_view([old, middle, young], available=0))
    assert plan.preempt == (young.number,)
    assert list(rows_of(plan)) == [old.number, middle.number]


SHAPES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 9)), max_size=12)


@given(SHAPES, st.lists(st.integers(1, 40), max_size=5), st.integers(12, 64), st.integers(0, 60))
@pytest.mark.parametrize("policy", [Chunked(), ByModel(), Layered()])
def test_plans_never_exceed_rows_or_pages(
    policy: Chunked | ByModel | Layered,
    shapes: list[tuple[int, int]],
    waiting: list[int],
    max_rows: int,
    available: int,
) -> None:
    running = [FakeSequence(rows, held) for rows, held in shapes]
    asked = [FakeSequence(rows) for rows in waiting]
    every = (running, asked, max_rows, 64)
    options = {"available": available, "is_idle": not running}
    plan = policy.plan(make_view(*every, **options))
    check(plan, make_view(*every, **options))
    passed = sum(w.rows * (w.last_stop - w.first_stop + 1) / 4 for w in plan.work)
    assert passed <= 2 * max_rows if isinstance(policy, Layered) else passed <= max_rows
    freed = sum(each.held for each in running if each.number in plan.preempt)
    assert sum(work.rows for work in plan.work) <= available + freed
    gone = running[len(running) - len(plan.preempt) :]
    assert plan.preempt == tuple(each.number for each in reversed(gone))


def test_admission_keeps_a_reserve_unless_the_pool_is_idle() -> None:
    admission = Admission(first_row=0, num_new=5, pages=8, blocked=False)

    def rows(available: int, reserve: int, is_idle: bool, most: int = 100) -> int:
        return admit_rows(admission, most, FakePages({}, available, reserve, is_idle))

    assert rows(available=9, reserve=2, is_idle=False) == 0
    assert rows(available=9, reserve=2, is_idle=True) == 5
    assert rows(available=90, reserve=2, is_idle=False, most=3) == 3
    blocked = admission._replace(blocked=True)
    assert admit_rows(blocked, 100, FakePages({}, 90, 0, True)) == 0


def test_only_a_request_that_waits_for_a_page_is_overtaken() -> None:
    large, blocked, small = FakeSequence(500), FakeSequence(5, is_blocked=True), FakeSequence(5)
    assert Chunked().plan(make_view(waiting=[large, small], available=50)).admit == ()
    assert Chunked().plan(make_view(waiting=[blocked, small])).admit == (small.number,)


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=12), st.integers(1, 30))
def test_no_model_waits_longer_than_the_others_need(waiting: list[str], turns: int) -> None:
    known = [FakeSequence(1, model=model) for model in waiting]
    served = []
    for turn in range(1, turns + 1):
        served.append(model_order(known)[0])
        for each in known:
            each.last_turn = turn if each.model == served[-1] else each.last_turn
    models = list(dict.fromkeys(waiting))
    assert served == [models[turn % len(models)] for turn in range(turns)]


def test_a_wave_of_prompts_passes_a_group_of_stops_a_turn_beside_decoding() -> None:
    decoding, prompt = FakeSequence(1, num_computed=9), FakeSequence(22)
    plan = Layered().plan(make_view([decoding], [prompt], max_rows=12))
    # 22 rows where 11 fit: two groups of two stops
    assert plan.work == (full_work(decoding, 1), Work(prompt.number, 0, 22, 0, 1))
    assert plan.admit == (prompt.number,)
    prompt.paused, prompt.num_new = [PausedRows(2, 0, 22)], 0
    behind = FakeSequence(7)
    plan = Layered().plan(make_view([decoding, prompt], [behind], max_rows=12))
    assert plan.work == (full_work(decoding, 1), Work(prompt.number, 0, 22, 2, 3))
    assert plan.admit == (), "the next wave waits until this one is done"


@pytest.mark.parametrize(
    ("work", "reason"),
    [
        (Work(0, 4, 5, 2, 3), "do not wait there"),
        (Work(0, 4, 3, 2, 4), "pass rows before"),
        (Work(0, 8, 1, 0, 2), "pass rows before"),
        (Work(0, 7, 1, 0, 1), r"0, 7"),
        (Work(1, 0, 1, 0, 1), "without pages"),
    ],
)
def test_illegal_plans_are_refused(work: Work, reason: str) -> None:
    known = FakeSequence(5, num_computed=4, paused=[PausedRows(2, 4, 4)], number=0)
    with pytest.raises((AssertionError, KeyError), match=reason):
        check(Plan((), (), (work,)), make_view([known]))
    check(Plan((), (), (Work(0, 4, 4, 2, 3), Work(0, 8, 5, 0, 1))), make_view([known]))
