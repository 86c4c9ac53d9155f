"""The policy for offline sequences as a pure function: what online ones get does not depend on
them, and nothing is left unused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.engine.policies import BlockLimits, ByModel, Chunked, Layered, Slack
from blockllm.engine.policies.block_limits import StopLimit
from blockllm.engine.sequence.place import Place
from blockllm.engine.work import Plan, View, check
from tests.engine.fake_view import FakeSequence, make_view

LIMITS = {"m": tuple(StopLimit(Place(i, i), 9, False) for i in range(4))}


def rows_of(plan: Plan) -> int:
    return sum(work.rows for work in plan.work)


def test_offline_prompts_take_the_rows_that_are_left() -> None:
    online, below = FakeSequence(7), FakeSequence(50, is_offline=True)
    waiting = [FakeSequence(50, is_offline=True), FakeSequence(4)]
    plan = Slack(Chunked()).plan(make_view([below, online], waiting, max_rows=20))
    assert {work.sequence: work.rows for work in plan.work} == {
        online.number: 7, waiting[1].number: 4, below.number: 9,
    }  # fmt: skip
    assert plan.admit == (waiting[1].number,)
    full = make_view([below, FakeSequence(20)], waiting, max_rows=20)
    assert all(not full.sequences[w.sequence].is_offline for w in Slack(Chunked()).plan(full).work)
    alone = make_view([below], waiting[:1], max_rows=70)
    assert rows_of(Slack(Chunked()).plan(alone)) == 70


def test_the_youngest_offline_sequence_gives_its_pages_and_slot_to_an_online_one() -> None:
    below = [FakeSequence(1, held=6, is_offline=True) for _ in range(2)]
    grows = FakeSequence(1, held=3)
    options = {"available": 0, "is_idle": False}
    plan = Slack(Chunked()).plan(make_view([grows, *below], **options))
    assert plan.preempt == (below[1].number,)
    assert [work.sequence for work in plan.work] == [grows.number, below[0].number]
    asks = FakeSequence(4)
    view = make_view(below, [asks], max_sequences=2)
    plan = Slack(Chunked()).plan(view)
    assert plan.preempt == (below[1].number,) and plan.admit == ()
    plan = Slack(Chunked()).plan(make_view(below[:1], [below[1], asks], max_sequences=2))
    assert plan.admit == (asks.number,)


def test_no_offline_sequence_is_admitted_while_an_online_one_waits_for_pages() -> None:
    asks, below = FakeSequence(40), FakeSequence(2, is_offline=True)
    running = [FakeSequence(1)]
    view = make_view(running, [asks, below], available=30, is_idle=False)
    assert Slack(Chunked()).plan(view).admit == ()
    asks.is_blocked = True
    view = make_view(running, [asks, below], available=30, is_idle=False)
    assert Slack(Chunked()).plan(view).admit == (below.number,)


SEQUENCES = st.lists(
    st.builds(
        FakeSequence,
        num_new=st.sampled_from((1, 1, 1, 5, 30)),
        held=st.integers(0, 9),
        is_offline=st.booleans(),
        tenant=st.sampled_from("ab"),
    ),
    max_size=10,
)
POLICIES = [
    Slack(Chunked()), Slack(Layered()), ByModel(Slack(Chunked())),
    BlockLimits(Slack(Chunked()), LIMITS),
]  # fmt: skip


@given(SEQUENCES, SEQUENCES, st.integers(10, 60), st.integers(0, 60), st.integers(10, 14))
@pytest.mark.parametrize("policy", POLICIES, ids=["chunked", "layered", "models", "limits"])
def test_plans_are_legal_and_offline_sequences_cost_online_ones_nothing(
    policy: Slack | ByModel | BlockLimits,
    running: list[FakeSequence],
    waiting: list[FakeSequence],
    max_rows: int,
    available: int,
    slots: int,
) -> None:
    def view(own: list[FakeSequence], line: list[FakeSequence], pages: int) -> View:
        options = {"available": pages, "is_idle": not own}
        return make_view(own, line, max_rows, slots, **options)

    plan = policy.plan(view(running, waiting, available))
    check(plan, view(running, waiting, available))
    if isinstance(policy, BlockLimits):
        return  # hops are full of whichever rows came first
    lenders = [known for known in running if known.is_offline]
    offline = {known.number for known in (*running, *waiting) if known.is_offline}
    online = [[k for k in known if not k.is_offline] for known in (running, waiting)]
    alone = policy.plan(view(*online, available + sum(known.held for known in lenders)))
    assert [number for number in plan.preempt if number not in offline] == [*alone.preempt]
    if not set(plan.preempt) & offline:
        assert [number for number in plan.admit if number not in offline] == [*alone.admit]
    work = [each for each in plan.work if each.sequence not in offline]
    begun = set(alone.admit) - set(plan.admit)  # their room is being made
    assert work == [each for each in alone.work if each.sequence not in begun]


@given(SEQUENCES, SEQUENCES, st.integers(10, 60))
def test_no_row_of_a_turn_is_left_while_something_asks_for_it(
    running: list[FakeSequence], waiting: list[FakeSequence], max_rows: int
) -> None:
    plan = Slack(Chunked()).plan(make_view(running, waiting, max_rows, available=5000))
    asked = sum(known.num_new for known in (*running, *waiting))
    assert rows_of(plan) == min(max_rows, asked)
