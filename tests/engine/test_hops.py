"""The plan of a turn's hops: each sequence visits every stop of its route, in order, once."""

from __future__ import annotations

import itertools
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blockllm.chain import Stop
from blockllm.engine.batch.arrays import Source, join
from blockllm.engine.batch.hops import HopCursor, plan_hops
from blockllm.engine.sequence.place import Place
from blockllm.engine.sequence.sequence import StopState
from blockllm.observability.timeline import Recorder

# three models: a shared foot, ways that part, a shared head at unequal depths
WAYS = {"a": (0, 1, 4), "b": (0, 2, 4), "c": (0, 3, 3, 4)}
HEAD = 4


def make_states(pools: tuple[int, ...] = (0, 0, 0)) -> list[Any]:
    states = []
    for rank, (model, way) in enumerate(WAYS.items()):
        stops = tuple(
            StopState(
                Place(span, None if span == HEAD else i),
                Stop(span, (None,), i, i, ends_attention=i >= len(way) - 2),
            )
            for i, span in enumerate(way)
        )
        route = SimpleNamespace(chain=SimpleNamespace(model=model))
        states.append(SimpleNamespace(rank=rank, stops=stops, route=route, kv_class=pools[rank]))
    return states


def make_batch(asked: list[tuple[int, int]]) -> Any:
    ranks, counts = np.array(sorted(asked), np.int64).T
    last = np.array([len(way) - 1 for way in WAYS.values()])[ranks]
    stops = {"first_stops": np.zeros_like(ranks), "last_stops": last}
    return SimpleNamespace(ranks=ranks, counts=counts, resumed=None, **stops)


BATCHES = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=1, max_size=9)


@given(BATCHES, st.booleans())
def test_every_row_walks_its_way(asked: list[tuple[int, int]], joins: bool) -> None:
    batch, states = make_batch(asked), make_states()
    queues = HopCursor(states, joins=joins)
    queues.enter(batch)
    walked: dict[int, list[int]] = {row: [] for row in range(int(batch.counts.sum()))}
    outputs = 0
    while hop := queues.pick():
        rows = hop.rows.tolist()
        if hop.hidden is None:
            assert hop.plan.span == 0
        else:  # whatever a row brings, it brought itself
            assert hop.hidden[:, 0].tolist() == rows
        assert hop.starts[-1] == len(rows)
        assert np.array_equal(np.diff(hop.starts), batch.counts[hop.members])
        run = hop.plan.carried.run
        assert (run is None) == (np.diff(rows) != 1).any()
        assert run is None or rows == list(walked)[run]
        for row in rows:
            walked[row] += hop.plan.spans
        assert joins or len(hop.plan.spans) == 1
        assert len(hop.segments) == len(hop.plan.spans)
        done = hop.plan.spans[-1] == HEAD
        queues.hand_over(None if done else torch.tensor(rows)[:, None])
        outputs += done
    owners = np.repeat(batch.ranks, batch.counts).tolist()
    ways = list(WAYS.values())
    assert [tuple(walk) for walk in walked.values()] == [ways[rank] for rank in owners]
    if len({len(ways[rank]) for rank in owners}) == 1:
        assert outputs == 1, "rows that parted meet again at the shared head"


def test_spans_between_which_nobody_joins_or_leaves_are_one_hop() -> None:
    def hops(*asked: tuple[int, int]) -> list[tuple[int, ...]]:
        queues = HopCursor(make_states(), joins=True)
        queues.enter(make_batch(list(asked)))
        return [plan.spans for plan in queues._plans]

    assert hops((0, 1), (0, 3)) == [(0, 1, 4)]
    assert hops((2, 1)) == [(0, 3, 3, 4)]
    assert hops((0, 1), (1, 1)) == [(0,), (1,), (2,), (4,)]
    # at its own pace as far as no other sequence ever comes
    assert hops((0, 1), (2, 1)) == [(0,), (1,), (3, 3), (4,)]


def test_a_plan_is_kept_while_models_and_counts_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = itertools.count()

    def counted(*arguments: Any) -> Any:
        next(calls)
        return plan_hops(*arguments)

    monkeypatch.setattr("blockllm.engine.batch.hops.plan_hops", counted)
    queues = HopCursor(make_states(), Recorder())
    for asked in ([(0, 1), (1, 1)], [(0, 1), (1, 1)], [(0, 1), (1, 2)], [(0, 1), (2, 2)]):
        queues.enter(make_batch(asked))
    assert next(calls) == 3


def test_neighbouring_rows_are_joined_without_copying() -> None:
    first, second = torch.arange(6.0)[:, None], torch.arange(6.0, 9.0)[:, None]
    assert join({0: first, 1: second}, (Source(0, 0, 6),)) is first
    part = join({0: first, 1: second}, (Source(0, 2, 5),))
    assert part.data_ptr() == first[2:].data_ptr() and len(part) == 3
    both = join({0: first, 1: second}, (Source(1, 0, 3), Source(0, 4, 6)))
    assert both[:, 0].tolist() == [6, 7, 8, 4, 5]


def test_hidden_states_are_let_go_where_they_are_taken_last() -> None:
    queues = HopCursor(make_states())
    queues.enter(make_batch([(0, 1), (1, 1), (2, 2)]))
    kept: dict[int, weakref.ref[torch.Tensor]] = {}
    index = 0
    while hop := queues.pick():
        later = {source.hop for plan in queues._plans[index + 1 :] for source in plan.sources}
        hop = hop._replace(hidden=None)
        assert {at for at, output in kept.items() if output() is not None} == later & set(kept)
        out = None if hop.plan.span == HEAD else torch.zeros(len(hop.rows), 1)
        if out is not None:
            kept[index] = weakref.ref(out)
        queues.hand_over(out)
        del out
        index += 1
    assert len(kept) > 3


@given(BATCHES, st.sampled_from([(0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 2)]))
def test_neighbours_of_one_pool_are_gathered_at_once(
    asked: list[tuple[int, int]], pools: tuple[int, ...]
) -> None:
    queues, batch = HopCursor(make_states(pools)), make_batch(asked)
    queues.enter(batch)
    pool_of = np.array(pools)[batch.ranks]
    wholes: dict[int, list[int]] = {}  # by number
    while hop := queues.pick():
        part = hop.plan.carried
        own = set(pool_of[part.members].tolist())
        if part.whole is not None:
            members, rows = part.within
            assert np.array_equal(part.whole.members[members], part.members)
            assert np.array_equal(part.whole.rows[rows], part.rows)
        whole = part.whole or part
        assert part.run is None or len(own) > 1 or set(pool_of[whole.members]) == own
        if part.run is not None and len(own) == 1:
            assert len(whole.members) == np.isin(pool_of, list(own)).sum()
        assert wholes.setdefault(whole.number, whole.members.tolist()) == whole.members.tolist()
        queues.hand_over(None if hop.plan.span == HEAD else torch.zeros(len(hop.rows), 1))
