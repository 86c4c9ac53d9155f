"""Tenants share rows, slots, pages and the line; one that is alone gets everything."""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.core import Request
from blockllm.engine import Engine
from blockllm.engine.policies import Chunked
from blockllm.engine.policies.tenants import in_turn, split_prompts
from blockllm.errors import Overloaded, TooManyRequests
from blockllm.shares import has_room
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, settings, step
from tests.engine.fake_view import FakeSequence, make_view


def sequences(tenant: str, count: int, rows: int = 5) -> list[FakeSequence]:
    return [FakeSequence(rows, tenant=tenant) for _ in range(count)]


def test_the_tenant_with_the_fewest_running_is_admitted_first() -> None:
    running, waiting = sequences("a", 2), sequences("a", 3) + sequences("b", 3)
    order = [known.tenant for known in in_turn(make_view(running, waiting))]
    assert order == list("bbabaa")
    alone = sequences("a", 3)
    assert list(in_turn(make_view(running, alone))) == alone


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=12))
def test_rows_of_prompts_are_shared_equally_and_none_is_left(
    asked: list[tuple[str, int]],
) -> None:
    prompts = [FakeSequence(rows, tenant=tenant) for tenant, rows in asked]
    rows = split_prompts(prompts, 60)
    assert sum(rows.values()) == min(60, sum(rows for _, rows in asked))
    own = {t: sum(rows[p.number] for p in prompts if p.tenant == t) for t, _ in asked}
    wanted = {t: sum(p.num_new for p in prompts if p.tenant == t) for t, _ in asked}
    for tenant in own:
        if own[tenant] < wanted[tenant]:  # then no other has more, but for rounding
            assert max(own.values()) <= own[tenant] + 1
    for tenant in own:  # in order of age
        shares = [rows[p.number] for p in prompts if p.tenant == tenant and p.num_new]
        full = [p.num_new for p in prompts if p.tenant == tenant and p.num_new]
        cut = next((i for i, (s, f) in enumerate(zip(shares, full, strict=True)) if s < f), None)
        assert cut is None or not any(shares[cut + 1 :])


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
    same = make_view(sequences("a", 4, rows=1), sequences("a", 9), max_sequences=4, is_idle=False)
    assert Chunked().plan(same).preempt == ()


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
