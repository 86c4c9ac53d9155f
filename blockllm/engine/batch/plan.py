"""Which rows go through which span together (design law 3): plans of hops, from counts alone."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np

from blockllm.engine.batch.arrays import HopPlan, Ints, RowSet, Segment, Source
from blockllm.engine.sequence.place import Place
from blockllm.engine.sequence.sequence import RouteState, StopState


class Run(NamedTuple):
    """Neighbouring members of a batch that ask for one model and go through the same stops."""

    number: int  # among those of the batch
    state: RouteState
    first: int  # members first..last
    last: int
    start: int  # rows start..stop
    stop: int
    first_stop: int  # stops first_stop..last_stop of the route, both included
    last_stop: int

    @property
    def stops(self) -> tuple[StopState, ...]:
        return self.state.stops[self.first_stop : self.last_stop + 1]


class _Arrival(NamedTuple):
    """A run that waits at a stop of its route, and where its hidden states are."""

    run: Run
    at: int  # index of the stop
    source: Source | None

    @property
    def is_last(self) -> bool:
        return self.at + 1 == len(self.run.state.stops)

    @property
    def here(self) -> StopState:
        return self.run.state.stops[self.at]


def plan_hops(runs: list[Run], counts: Ints, joins: bool = False) -> list[HopPlan]:
    """Let the shallowest waiting span go first with all rows that wait there: rows that part after
    shared blocks meet again at the next shared one, since no row runs ahead.

    `joins`: spans between which no sequence of the turn joins or leaves are one hop, so a model
    that is alone pays for no cut that others have made."""
    waiting: dict[Place, list[_Arrival]] = {}
    plans: list[HopPlan] = []
    sets = _RowSets(runs, counts)
    visits = Counter(stop.place for run in runs for stop in run.stops) if joins else None
    arrivals = [_Arrival(run, run.first_stop, _resumed(run)) for run in runs]
    while True:
        for arrival in arrivals:
            waiting.setdefault(arrival.here.place, []).append(arrival)
        if not waiting:
            return _forget_spent(plans)
        place = min(waiting, key=lambda p: min(a.here.stop.depth for a in waiting[p]))
        passed = [waiting.pop(place)]
        while visits and (onward := _onward(passed[-1], visits)):
            passed.append(onward)
        arrivals, pauses, start = [], [], 0
        for run, index, _ in passed[-1]:
            stop = start + run.stop - run.start
            if index < run.last_stop:
                source = Source(len(plans), start, stop)
                arrivals.append(_Arrival(run, index + 1, source))
            elif index + 1 < len(run.state.stops):
                pauses.append((run.number, start, stop))
            start = stop
        plans.append(_plan(passed, sets)._replace(pauses=tuple(pauses)))


def _resumed(run: Run) -> Source | None:
    """The hidden states that a run begins with; None at the first stop."""
    return Source(-1 - run.number, 0, run.stop - run.start) if run.first_stop else None


def _onward(group: list[_Arrival], visits: Counter[Place]) -> list[_Arrival] | None:
    """The group at its next span, if it goes there whole and no other row of the turn ever does."""
    onward = [a._replace(at=a.at + 1) for a in group if a.at < a.run.last_stop]
    places = {arrival.here.place for arrival in onward}
    together = len(onward) == len(group) and len(places) == 1
    return onward if together and visits[places.pop()] == len(group) else None


class _RowSets:
    """The row sets of one plan, equal ones once."""

    def __init__(self, runs: list[Run], counts: Ints) -> None:
        self._counts = counts
        self._known: dict[bytes, RowSet] = {}  # by members
        self._wholes: dict[int, RowSet] = {}  # all rows that keep KV in one pool
        pools: dict[int, list[Run]] = {}
        for run in runs:
            pools.setdefault(run.state.kv_class, []).append(run)
        for pool, own in pools.items():
            self._wholes[pool] = self.of(own)

    def of(self, runs: list[Run]) -> RowSet:
        """The rows of these runs."""
        members = np.concatenate([np.arange(run.first, run.last) for run in runs])
        known = self._known.get(members.tobytes())
        if known is None:
            known = self._known[members.tobytes()] = self._make(runs, members)
        return known

    def _make(self, runs: list[Run], members: Ints) -> RowSet:
        starts = np.zeros(len(members) + 1, np.int64)
        np.cumsum(self._counts[members], out=starts[1:])
        rows = np.concatenate([np.arange(run.start, run.stop) for run in runs])
        known = (len(self._known), members, rows, starts)
        if any(left.last != right.first for left, right in itertools.pairwise(runs)):
            return RowSet(*known)
        neighbours = slice(runs[0].start, runs[-1].stop)
        pool, *others = {run.state.kv_class for run in runs}
        whole = None if others else self._wholes.get(pool)
        if whole is None:
            return RowSet(*known, neighbours)
        first_member = int(np.searchsorted(whole.members, members[0]))
        first_row = int(np.searchsorted(whole.rows, rows[0]))
        return RowSet(*known, neighbours, whole, first_member, first_row)


def _plan(passed: list[list[_Arrival]], sets: _RowSets) -> HopPlan:
    """One hop of a group through the spans that it passes."""
    group = passed[0]
    runs = [arrival.run for arrival in group]
    firsts = [arrivals[0].here.stop for arrivals in passed]  # all agree in where its KV lies
    return HopPlan(
        spans=tuple(stop.span for stop in firsts),
        first_kv_layer=firsts[0].first_kv_layer,
        models=tuple(dict.fromkeys(run.state.route.chain.model for run in runs)),
        carried=sets.of(runs),
        sources=_merge([a.source for a in group if a.source is not None]),
        segments=tuple(itertools.chain.from_iterable(map(_segments, passed))),
        spent=(),
        pauses=(),
        ends_attention=all(arrival.here.stop.ends_attention for arrival in passed[-1]),
        has_head=passed[-1][0].is_last,
    )


def _forget_spent(plans: list[HopPlan]) -> list[HopPlan]:
    """Let go of every hop's hidden states where the last of them are taken."""
    last: dict[int, int] = {}  # by hop, the hop that takes of it last
    for index, plan in enumerate(plans):
        last.update((source.hop, index) for source in plan.sources)
    spent: dict[int, list[int]] = {}
    for hop, taker in last.items():
        spent.setdefault(taker, []).append(hop)
    return [plan._replace(spent=tuple(spent.get(i, ()))) for i, plan in enumerate(plans)]


def _merge(sources: list[Source]) -> tuple[Source, ...]:
    """Neighbouring rows of one hop are taken as one."""
    merged: list[Source] = []
    for source in sources:
        last = merged[-1] if merged else None
        if last and last.hop == source.hop and last.stop == source.start:
            merged[-1] = Source(last.hop, last.start, source.stop)
        else:
            merged.append(source)
    return tuple(merged)


def _segments(group: list[_Arrival]) -> tuple[tuple[Segment, ...], ...]:
    """Each run whose model has a delta for a block is a segment there."""
    segments: dict[int, list[Segment]] = {}
    start = 0
    for arrival in group:
        run = arrival.run
        stop = start + run.stop - run.start
        for block, delta in enumerate(arrival.here.stop.deltas):
            own = segments.setdefault(block, [])
            if delta is not None:
                own.append(Segment(start, stop, delta.id))
        start = stop
    return tuple(tuple(own) for own in segments.values())
