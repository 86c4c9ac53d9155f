"""Every block has its own batch limit: rows over it wait in front of the block (BlockLLM, arXiv
2404.18322).

Wraps a policy and cuts its plan, which resumes the rows that wait. A hop at a span takes at most
as many rows as the span's limit says. A single row that finds a hop full ends its work in front of
it and goes before others in the next turn. A chunk of a prompt is shortened to what all hops on
its way have left: the rest has not begun, so nothing piles up in front of a block.

Single rows go before chunks, which have a part of every hop for themselves; of each kind, rows that
wait go first, then the sequence that had rows longest ago. So every row gets on, in order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from blockllm.engine.costs.turn_budget import LEAST_ROWS
from blockllm.engine.sequence.place import Place
from blockllm.engine.sequence.sequence import RouteState
from blockllm.engine.work import Known, Plan, Policy, View, Work

_UNLIMITED = 1 << 30


class StopLimit(NamedTuple):
    """What a stop's hop takes."""

    place: Place  # a turn has one hop at each
    rows: int  # of all models, at most
    is_behind_attention: bool  # only rows whose next token is wanted come here


def stop_limits(
    states: Mapping[str, RouteState], rows: Mapping[int, int]
) -> dict[str, tuple[StopLimit, ...]]:
    """The stops of each model. `rows`: limits by span; a span that is absent has none."""
    found = {}
    for model, state in states.items():
        behind = [False, *(stop.stop.ends_attention for stop in state.stops)]
        found[model] = tuple(
            StopLimit(stop.place, rows.get(stop.place.span, _UNLIMITED), is_behind)
            for stop, is_behind in zip(state.stops, behind, strict=False)
        )
    return found


class BlockLimits:
    """The plan of another policy, cut where hops would have more rows than their limits."""

    def __init__(self, inner: Policy, stops: Mapping[str, Sequence[StopLimit]]) -> None:
        """`stops`: of every model, in order."""
        self._inner, self._stops = inner, stops
        self._least = min(stop.rows for own in stops.values() for stop in own)

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        plan = self._inner.plan(view)
        if sum(work.rows for work in plan.work) <= self._least:
            return plan  # no hop can have too many
        ways = sorted((self._way(work, view) for work in plan.work), key=lambda way: way.order)
        singles = [way for way in ways if way.work.rows == 1]
        chunks = [way for way in ways if way.work.rows > 1]
        room = _Room(stop for way in chunks for stop in way.stops)
        kept = [room.pass_single(way) for way in singles] + [room.pass_chunk(way) for way in chunks]
        work = tuple(each for each in kept if each is not None)
        begun = {each.sequence for each in work}
        return Plan(plan.preempt, tuple(n for n in plan.admit if n in begun), work)

    def _way(self, work: Work, view: View) -> _Way:
        known = view.sequences[work.sequence]
        stops = self._stops[known.model][work.first_stop : work.last_stop + 1]
        return _Way(work, known, stops)


class _Way(NamedTuple):
    """Work, whose it is, and the stops that it passes."""

    work: Work
    known: Known
    stops: Sequence[StopLimit]

    @property
    def order(self) -> tuple[bool, int]:
        """Rows that wait first; then those whose sequence had rows longest ago."""
        return self.work.first_stop == 0, self.known.own_turn

    def num_at(self, stop: StopLimit, rows: int) -> int:
        """How many of the work's first `rows` rows come to the stop."""
        if not stop.is_behind_attention:
            return rows
        return int(self.work.start + rows == self.known.num_begun + self.known.num_new)


class _Room:
    """What the hops of a turn still take."""

    def __init__(self, of_chunks: Iterable[StopLimit]) -> None:
        """`of_chunks`: stops that chunks come to, where a part is kept for them."""
        self._taken = Counter[Place]()
        self._kept = {
            stop.place: min(LEAST_ROWS, stop.rows // 2)
            for stop in of_chunks
            if not stop.is_behind_attention
        }

    def pass_single(self, way: _Way) -> Work | None:
        """The row as far as hops have room; None if it gets nowhere."""
        passed = 0
        for stop in way.stops:
            count = way.num_at(stop, 1)
            if count > self._left(stop) - self._kept.get(stop.place, 0):
                break
            self._taken[stop.place] += count
            passed += 1
        work = way.work
        return work._replace(last_stop=work.first_stop + passed - 1) if passed else None

    def pass_chunk(self, way: _Way) -> Work | None:
        """As many of the rows as all hops on the way take; None if that is none."""
        before = (stop for stop in way.stops if not stop.is_behind_attention)
        rows = min([way.work.rows, *map(self._left, before)])
        if any(way.num_at(stop, rows) > self._left(stop) for stop in way.stops):
            rows -= 1  # the row whose next token is wanted stays
        if rows <= 0:
            return None
        for stop in way.stops:
            self._taken[stop.place] += way.num_at(stop, rows)
        return way.work._replace(rows=rows)

    def _left(self, stop: StopLimit) -> int:
        return stop.rows - self._taken[stop.place]
