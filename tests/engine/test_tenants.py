"""Tenants share rows, slots, pages and the line; one that is alone gets everything."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.core import Request
from blockllm.engine import Engine
from blockllm.engine.policies import Chunked
from blockllm.engine.policies.tenants import FairTenants
from blockllm.errors import Overloaded, TooManyRequests
from blockllm.shares import has_room
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, settings, step
from tests.engine.fake_view import FakeSequence, FakeTenant, make_view


def sequences(tenant: str, count: int, rows: int = 5) -> list[FakeSequence]:
    return [FakeSequence(rows, tenant=tenant) for _ in range(count)]


def test_the_tenant_with_the_least_counter_is_admitted_first() -> None:
    waiting = sequences("a", 3) + sequences("b", 3)
    tenants = {"a": FakeTenant(counter=9.0), "b": FakeTenant()}
    order = [
        known.tenant for known in FairTenants(make_view((), waiting, tenants=tenants)).in_turn()
    ]
    assert order == list("bbabaa"), "a prompt of 5 rows counts 5"
    tenants["b"].weight = 0.5
    order = [
        known.tenant for known in FairTenants(make_view((), waiting, tenants=tenants)).in_turn()
    ]
    assert order == list("babaab"), "with half of the weight 10"
    alone = sequences("a", 3)
    assert list(FairTenants(make_view((), alone)).in_turn()) == alone


TENANTS = st.fixed_dictionaries(
    {
        name: st.builds(
            FakeTenant,
            counter=st.floats(0, 1e9),
            weight=st.floats(0.001, 1000),
            max_rows=st.sampled_from((0, 0, 3, 20)),
        )
        for name in "abc"
    }
)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(2, 40)), max_size=12),
    TENANTS,
    st.integers(0, 80),
)
def test_rows_of_prompts_level_the_counters_and_none_is_left(
    asked: list[tuple[str, int]], tenants: dict[str, FakeTenant], room: int
) -> None:
    prompts = [FakeSequence(rows, tenant=tenant) for tenant, rows in asked]
    rows = FairTenants(make_view(prompts, tenants=tenants)).split(prompts, room)
    own = {t: sum(rows[p.number] for p in prompts if p.tenant == t) for t, _ in asked}
    wanted = {t: sum(p.num_new for p in prompts if p.tenant == t) for t, _ in asked}
    for tenant, quota in ((t, tenants[t].max_rows) for t in wanted):
        wanted[tenant] = min(wanted[tenant], quota or wanted[tenant])
    assert sum(own.values()) == min(room, sum(wanted.values()))

    def after(tenant: str, more: int) -> float:
        return tenants[tenant].counter + (own[tenant] + more) / tenants[tenant].weight

    for tenant in own:
        if own[tenant] < wanted[tenant]:  # then no other got rows beyond its counter, but for one
            others = (other for other in own if own[other] > 1)
            assert all(after(o, -1) <= after(tenant, 1) * (1 + 1e-9) for o in others)
    for tenant in own:  # in order of age
        shares = [rows[p.number] for p in prompts if p.tenant == tenant]
        full = [p.num_new for p in prompts if p.tenant == tenant]
        cut = next((i for i, (s, f) in enumerate(zip(shares, full, strict=True)) if s < f), None)
        assert cut is None or not any(shares[cut + 1 :])


def test_equal_tenants_have_equal_shares_and_weights_divide_them() -> None:
    prompts = sequences("a", 3, rows=40) + sequences("b", 1, rows=100)
    assert rows_by_tenant(prompts) == {"a": 30, "b": 30}
    tenants = {"a": FakeTenant(weight=3.0), "b": FakeTenant()}
    assert rows_by_tenant(prompts, tenants) == {"a": 45, "b": 15}
    assert rows_by_tenant(prompts[:3]) == {"a": 60}, "one that is alone gets everything"


def rows_by_tenant(
    prompts: list[FakeSequence], tenants: dict[str, FakeTenant] | None = None
) -> dict[str, int]:
    rows = FairTenants(make_view(prompts, tenants=tenants)).split(prompts, 60)
    names = dict.fromkeys(p.tenant for p in prompts)
    return {name: sum(rows[p.number] for p in prompts if p.tenant == name) for name in names}


def test_rows_are_left_for_the_first_in_line_that_can_be_admitted() -> None:
    running, waiting = sequences("a", 1, rows=100), sequences("b", 1, rows=7)
    plan = Chunked().plan(make_view(running, waiting, max_rows=20))
    assert {work.sequence: work.rows for work in plan.work} == {
        running[0].number: 13, waiting[0].number: 7,
    }  # fmt: skip
    waiting[0].is_blocked = True
    plan = Chunked().plan(make_view(running, waiting, max_rows=20))
    assert [work.rows for work in plan.work] == [20], "none are kept for one that cannot"
    large, small = FakeSequence(500, tenant="b"), FakeSequence(7, tenant="c")
    view = make_view(running, [large, small], max_rows=20, available=90, is_idle=False)
    assert [work.rows for work in Chunked().plan(view).work] == [20], "nor for one behind that"


def test_quotas_bound_rows_pages_and_sequences_of_a_turn() -> None:
    tenants = {"a": FakeTenant(max_rows=6), "b": FakeTenant(max_pages=20, num_pages=12)}
    running = [*sequences("a", 2, rows=1), *sequences("a", 1, rows=50)]
    waiting = [FakeSequence(5, tenant="b", most_pages=8) for _ in range(2)] + sequences("a", 9)
    plan = Chunked().plan(make_view(running, waiting, tenants=tenants))
    rows = {work.sequence: work.rows for work in plan.work}
    assert [rows[known.number] for known in running] == [1, 1, 4]
    assert plan.admit == (waiting[0].number,), "the second would pass the quota of pages"
    running = sequences("a", 5, rows=1)
    plan = Chunked().plan(make_view(running, sequences("a", 9), tenants=tenants))
    assert len(plan.admit) == 1, "as many sequences as rows"


def test_a_newcomer_gets_the_slot_of_the_youngest_of_the_tenant_with_most() -> None:
    running = sequences("a", 1, rows=1) + sequences("b", 3, rows=1)
    waiting = sequences("b", 4) + sequences("c", 1)
    view = make_view(running, waiting, max_sequences=4, is_idle=False)
    plan = Chunked().plan(view)
    assert plan.preempt == (running[3].number,) and plan.admit == ()
    assert {work.sequence for work in plan.work} == {known.number for known in running[:3]}
    view = make_view(running[:3], [running[3], *waiting], max_sequences=4, is_idle=False)
    assert Chunked().plan(view).admit == (waiting[-1].number,)
    alone = make_view(sequences("a", 4, rows=1), waiting[:4], max_sequences=4, is_idle=False)
    assert Chunked().plan(alone).preempt != (), "each tenant has its turn"
    heavy = {"b": FakeTenant(weight=4.0)}
    view = make_view(running, waiting, max_sequences=4, is_idle=False, tenants=heavy)
    assert Chunked().plan(view).preempt == (), "three of four times the weight are few"
    served = {"c": FakeTenant(counter=1.0)}
    view = make_view(running, waiting, max_sequences=4, is_idle=False, tenants=served)
    assert Chunked().plan(view).preempt == (), "it was served more than the others"
    same = make_view(sequences("a", 4, rows=1), sequences("a", 9), max_sequences=4, is_idle=False)
    assert Chunked().plan(same).preempt == ()


def test_pages_are_taken_from_the_tenant_that_may_come_to_hold_most_of_them() -> None:
    few = [FakeSequence(1, tenant="a", most_pages=40) for _ in range(2)]
    many = [FakeSequence(1, tenant="b", most_pages=3) for _ in range(6)]
    scarce = {"available": 8, "is_idle": False}

    def victims(asks: FakeSequence) -> tuple[int, ...]:
        return Chunked().plan(make_view([*few, *many], [asks], **scarce)).preempt

    assert victims(FakeSequence(30, tenant="b", most_pages=30)) == (few[1].number,)
    assert victims(FakeSequence(30, tenant="a", most_pages=30)) == (), "it has most itself"
    assert victims(FakeSequence(30, tenant="c", most_pages=80)) == (), "it would have most"


def test_lines_leave_room_for_newcomers() -> None:
    def fill(*shares: int) -> int:
        own = 0
        while has_room(own, own + sum(shares), 12):
            own += 1
        return own

    assert fill() == 6
    assert fill(6) == 3
    assert fill(4, 4) == 2


PROMPT = [(i * 37 + 11) % 96 for i in range(40)]


def hungry(count: int) -> list[Request]:
    return [
        request(f"a{i}", "base", [i % 96, *PROMPT], greedy(60), tenant="a") for i in range(count)
    ]


@pytest.mark.parametrize("memory", ["64MiB", "2MiB"])
def test_one_token_of_another_tenant_does_not_wait_for_a_crowd(zoo: Zoo, memory: str) -> None:
    """1,000 sequences of one tenant and a request of another: answered within a few turns."""
    engine = Engine(zoo, ["base"], settings(max_rows=64, max_waiting=4096, memory=memory))
    for one in hungry(1000):
        engine.submit(one)
    answers: dict[str, Answer] = {}
    for _ in range(10):
        step(engine, answers)
    engine.submit(request("b", "base", PROMPT[:20], greedy(1), tenant="b"))
    for _ in range(4):
        step(engine, answers)
    assert answers["b"].finish is not None
    for one in hungry(1000):
        engine.cancel(one.id)
    engine.check_books()


def test_a_full_line_of_one_tenant_refuses_it_and_takes_others(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings(max_waiting=10))
    asked = hungry(12)
    for one in asked[:5]:
        engine.submit(one)
    with pytest.raises(TooManyRequests, match="5 of your requests wait already"):
        engine.submit(asked[5])
    others = [request(f"b{i}", "base", PROMPT, greedy(2), tenant=f"b{i}") for i in range(6)]
    for one in islice(others, 5):
        engine.submit(one)
    with pytest.raises(Overloaded, match="10 requests wait"):
        engine.submit(others[5])
    for one in (*asked, *others):
        engine.cancel(one.id)
    engine.check_books()
