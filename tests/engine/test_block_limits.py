"""Batch limits of blocks: where plans are cut, that all rows get on, how limits are chosen."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.chain import SpanPlan, plan_spans
from blockllm.engine import Engine
from blockllm.engine.costs.row_limits import row_limits, rows_that_pay, rows_within
from blockllm.engine.costs.span import HopSize, SpanCost
from blockllm.engine.policies import BlockLimits, ByModel, Chunked, Layered
from blockllm.engine.policies.block_limits import StopLimit
from blockllm.engine.sequence.place import Place
from blockllm.engine.stats import HopCounters
from blockllm.engine.work import PausedRows, Plan, Work, check, full_work
from blockllm.errors import ConfigError
from blockllm.zoo import Zoo
from tests.driver import run, settings
from tests.engine.fake_view import FakeSequence, make_view
from tests.engine.test_random_policy import MODELS, expected, questions
from tools.campaigns.random_policy import RandomPolicy


def stops(*rows: int, head: bool = False) -> tuple[StopLimit, ...]:
    """Stops of a model at places of their own; `head`: one more, behind the attention."""
    own = [StopLimit(Place(i, i), most, False) for i, most in enumerate(rows)]
    return (*own, StopLimit(Place(99, None), 2, True)) if head else tuple(own)


HOT = {"m": stops(9, 9, 2, 9)}  # the third block takes two rows


def test_rows_over_a_blocks_limit_wait_in_front_of_it_and_go_first_in_the_next_turn() -> None:
    known = [FakeSequence(1, num_computed=5) for _ in range(4)]
    plan = BlockLimits(Chunked(), HOT).plan(make_view(known))
    assert plan.work == (
        full_work(known[0], 1), full_work(known[1], 1),
        Work(known[2].number, 5, 1, 0, 1), Work(known[3].number, 5, 1, 0, 1),
    )  # fmt: skip
    for each in known:
        each.own_turn = 1
    for each in known[:2]:
        each.num_computed = 6
    for each in known[2:]:
        each.paused, each.num_new = [PausedRows(2, 5, 1)], 0
    plan = BlockLimits(Chunked(), HOT).plan(make_view(known))
    assert plan.work == (
        Work(known[2].number, 5, 1, 2, 3), Work(known[3].number, 5, 1, 2, 3),
        Work(known[0].number, 6, 1, 0, 1), Work(known[1].number, 6, 1, 0, 1),
    )  # fmt: skip
    check(plan, make_view(known))


def test_a_prompt_begins_no_more_rows_than_the_least_limit_on_its_way() -> None:
    prompt = FakeSequence(30)
    plan = BlockLimits(Chunked(), HOT).plan(make_view(waiting=[prompt]))
    assert plan.work == (full_work(prompt, 2),) and plan.admit == (prompt.number,)
    # behind the attention only the last row goes on, so the head does not limit prompts
    with_head = {"m": stops(9, 9, 9, head=True)}
    plan = BlockLimits(Chunked(), with_head).plan(make_view(waiting=[FakeSequence(9)]))
    assert plan.work[0].rows == 9


def test_a_sequence_that_finds_its_first_block_full_is_not_admitted() -> None:
    running = [FakeSequence(1, num_computed=3) for _ in range(2)]
    others = tuple(stop._replace(place=Place(7, i)) for i, stop in enumerate(stops(9, 9, 9, 9)))
    limits = {"m": stops(1, 9, 9, 9), "n": others}
    other = FakeSequence(4, model="n")
    view = make_view(running, [FakeSequence(4), other])
    plan = BlockLimits(Chunked(), limits).plan(view)
    assert plan.admit == (other.number,)
    check(plan, make_view(running, list(view.waiting[""])))  # type: ignore[arg-type]


SEQUENCES = st.lists(
    st.tuples(st.integers(1, 30), st.integers(0, 3), st.integers(1, 6)), max_size=9
)
LIMITS = st.lists(st.integers(1, 9), min_size=4, max_size=4)


@given(SEQUENCES, st.lists(st.integers(1, 40), max_size=4), LIMITS, st.integers(12, 64))
@pytest.mark.parametrize("inner", [Chunked(), Layered()])
def test_no_hop_has_more_rows_than_its_limit_and_plans_stay_legal(
    inner: Chunked | Layered,
    shapes: list[tuple[int, int, int]],
    waiting: list[int],
    rows: list[int],
    max_rows: int,
) -> None:
    running = [
        FakeSequence(
            new, num_computed=3, own_turn=turn, paused=[PausedRows(stop, 3, turn)] if stop else ()
        )
        for new, stop, turn in shapes
    ]
    asked = [FakeSequence(new) for new in waiting]
    policy = BlockLimits(inner, {"m": stops(*rows)})
    plan = policy.plan(make_view(running, asked, max_rows))
    check(plan, make_view(running, asked, max_rows))
    passed = Counter[int]()
    for work in plan.work:
        for stop in range(work.first_stop, work.last_stop + 1):
            passed[stop] += work.rows
    assert all(passed[stop] <= most for stop, most in enumerate(rows))
    assert plan.work or not (running or asked), "something always gets on"


def test_a_chunk_is_shortened_to_what_single_rows_leave_and_neither_starves() -> None:
    decoding = [FakeSequence(1, num_computed=5) for _ in range(6)]
    prompts = [FakeSequence(30) for _ in range(2)]
    limits = {"m": stops(40, 40, 8, 40)}
    plan = BlockLimits(Chunked(), limits).plan(make_view([*prompts, *decoding]))
    passed = {work.sequence: work.rows for work in plan.work if work.last_stop == 3}
    assert passed == {prompts[0].number: 4} | {each.number: 1 for each in decoding[:4]}
    waits = {work.sequence for work in plan.work if work.last_stop == 1}
    assert waits == {each.number for each in decoding[4:]}, "the other prompt has not begun"
    # the last row of a prompt does not begin where the head is full
    head = {"m": stops(9, 9, 9, head=True)}
    plan = BlockLimits(Chunked(), head).plan(make_view([*decoding[:2], FakeSequence(5)]))
    assert plan.work[-1].rows == 4


def advance(known: FakeSequence, work: Work, turn: int) -> None:
    """What the scheduler does with a decoding sequence; its next row follows at once."""
    known.own_turn = turn
    done = work.last_stop + 1 == known.num_stops
    known.paused = [] if done else [PausedRows(work.last_stop + 1, work.start, 1)]
    known.num_computed += done
    known.num_new = int(done)


@pytest.mark.parametrize("rows", [(9, 9, 2, 9), (2, 9, 9, 9), (4, 2, 3, 1), (9, 1, 9, 1)])
def test_no_row_starves_however_many_come_to_a_block(rows: tuple[int, ...]) -> None:
    policy = BlockLimits(Chunked(), {"m": stops(*rows)})
    known = [FakeSequence(1) for _ in range(7)]
    by_number = {each.number: each for each in known}
    last, longest = dict.fromkeys(by_number, 0), 0
    for turn in range(1, 141):
        plan = policy.plan(make_view(known))
        for work in plan.work:
            advance(by_number[work.sequence], work, turn)
            if work.last_stop == 3:
                longest = max(longest, turn - last[work.sequence])
                last[work.sequence] = turn
    longest = max(longest, 140 - min(last.values()))
    assert longest <= -(-len(known) // min(rows)) + 4, "all others once, and a turn for each stop"
    tokens = sum(each.num_computed for each in known)
    assert tokens >= 139 * min(rows) - len(known), "the block is full in every turn"


@pytest.mark.parametrize("batching", ["blocks", "models", "layered"])
@pytest.mark.parametrize("overlap", ["off", "on"])
def test_limits_change_no_token(
    zoo: Zoo, batching: str, overlap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    count = HopCounters.count
    monkeypatch.setattr(
        HopCounters,
        "count",
        lambda own, hop: (sizes.append(len(hop.carried.rows)), count(own, hop)),
    )
    for seed in range(3):
        asked = questions(seed)
        limited = settings(
            block_limits=str(1 + 2 * seed), batching=batching, overlap=overlap, cut="layers"
        )
        engine = Engine(zoo, MODELS, limited)
        found = {name: answer.tokens for name, answer in run(engine, asked).items()}
        engine.check_books()
        assert max(sizes) == int(limited.block_limits)
        assert found == expected(zoo, asked)
        sizes.clear()


def test_limits_cut_any_policys_plan(zoo: Zoo) -> None:
    for seed in range(6):
        asked = questions(seed)
        engine = Engine(zoo, MODELS, settings(block_limits="3", cut="layers"))
        policy = engine._scheduler.policy
        assert isinstance(policy, BlockLimits)
        engine._scheduler.policy = BlockLimits(RandomPolicy(seed), policy._stops)
        found = {name: answer.tokens for name, answer in run(engine, asked).items()}
        engine.check_books()
        assert found == expected(zoo, asked), f"seed {seed}"


def test_a_turn_of_one_model_keeps_to_that_model() -> None:
    limits = {"a": stops(9, 1, 9, 9), "b": stops(9, 1, 9, 9)}
    known = [FakeSequence(1, model=model) for model in "aabb"]
    policy = ByModel(BlockLimits(Chunked(), limits))
    plan = policy.plan(make_view(known))
    assert {work.sequence for work in plan.work} == {known[0].number, known[1].number}


def cost(constant: float = 0.0, knee: float = 8, per_output: float = 0.0) -> SpanCost:
    return SpanCost(constant, 1e-3, per_output, 0.0, 0.0, 0.0, 0.0, 0.0, knee)


def test_a_limit_is_where_more_rows_no_longer_lower_the_seconds_of_each() -> None:
    assert rows_that_pay(cost(knee=8), 512) == 8
    assert rows_that_pay(cost(constant=10e-3, knee=8), 512) == 90
    assert rows_that_pay(cost(constant=1.0, knee=8), 512) == 512
    one = cost(constant=10e-3)
    for rows in (90, 200):
        gain = 1 - one.seconds(HopSize.decoding(2 * rows, 0)) / 2 / one.seconds(
            HopSize.decoding(rows, 0)
        )
        assert gain <= 0.0501


def test_rows_within_a_time() -> None:
    assert rows_within(cost(knee=8), 20e-3, 512) == 20
    assert rows_within(cost(knee=8), 5e-3, 512) == 0
    assert rows_within(cost(knee=8), 9.0, 512) == 512


@pytest.fixture(scope="module")
def plan(zoo: Zoo) -> SpanPlan:
    return plan_spans(zoo.chains(["base", "upper"]).values())


def test_a_hop_has_its_share_of_a_turn_but_never_less_than_its_knee(plan: SpanPlan) -> None:
    costs = {span.index: cost(constant=1.0, knee=8) for span in plan.spans}
    most = max(len(route.stops) for route in plan.routes.values())
    seconds = most * 1.1  # each hop of the longest route may take 1.1 s: its constant and 100 rows
    limits = row_limits(plan, costs, seconds, 512)
    longest = max(plan.routes.values(), key=lambda route: len(route.stops))
    assert {limits[stop.span] for stop in longest.stops} == {100}
    assert set(row_limits(plan, costs, 1e-6, 512).values()) == {8}
    assert set(row_limits(plan, costs, 0.0, 64).values()) == {64}


def test_unmeasured_blocks_have_no_limits(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings(block_limits="auto"))
    assert engine.parts.row_limits == {}
    assert not isinstance(engine._scheduler.policy, BlockLimits)


@pytest.mark.parametrize("value", ["0", "-1", "on", "1.5", "9999999"])
def test_other_values_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from blockllm.config import EngineSettings, load

    monkeypatch.setenv("BLOCKLLM_BLOCK_LIMITS", value)
    with pytest.raises(ConfigError, match="expected off, auto or a number of rows"):
        load(EngineSettings, "engine", None, {})


def test_plans_without_rows_stay_empty() -> None:
    assert BlockLimits(Chunked(), HOT).plan(make_view()) == Plan((), (), ())
