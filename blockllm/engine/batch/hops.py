"""The way of a batch through its hops: which is next, and the hidden states between them.

Which rows share a hop follows from the models of a turn and their row counts alone. So a turn's
hops are planned before the first one runs (law 7), and while neither changes the plan is kept.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np
import torch

from blockllm.engine.batch.arrays import Batch, Hop, HopPlan, join
from blockllm.engine.batch.plan import Run, plan_hops
from blockllm.engine.sequence.sequence import RouteState
from blockllm.observability.timeline import OFF, Timeline


class Paused(NamedTuple):
    """Hidden states of a member's rows that wait in front of a later stop for another turn."""

    member: int
    hidden: torch.Tensor  # [rows, hidden_size]


class HopCursor:
    """The hops of the current batch, in order, and the hidden states between them."""

    def __init__(
        self, states: SequenceOf[RouteState], timeline: Timeline = OFF, joins: bool = False
    ) -> None:
        """`joins`: see `plan_hops`."""
        self._joins = joins
        self._by_rank = {state.rank: state for state in states}
        self._timeline = timeline
        self._key = b""
        self._plans: list[HopPlan] = []

    def enter(self, batch: Batch) -> None:
        """All rows of a new batch wait where they begin."""
        ways = (batch.ranks, batch.counts, batch.first_stops, batch.last_stops)
        key = b"".join(array.tobytes() for array in ways)
        if key != self._key:
            self._runs = self._find_runs(batch)
            self._plans = plan_hops(self._runs, batch.counts, self._joins)
            self._key = key
        self._batch = batch
        self._next = 0
        self._outputs = self._resume(batch)
        self.paused: list[Paused] = []  # in the order of hops
        self._entered = self._timeline.now()
        self._done: list[int] = []  # when each hop was handed over

    def _resume(self, batch: Batch) -> dict[int, torch.Tensor | None]:
        """The hidden states of runs that begin behind the first stop, as `Source` names them."""
        if batch.resumed is None:
            return {}
        known: dict[int, torch.Tensor | None] = {}
        for run in self._runs:
            if run.first_stop:
                own = [batch.resumed[member] for member in range(run.first, run.last)]
                known[-1 - run.number] = own[0] if len(own) == 1 else torch.cat(own)
        return known

    def pick(self) -> Hop | None:
        """Take all rows that wait at the shallowest span."""
        if self._next == len(self._plans):
            return None
        plan = self._plans[self._next]
        hidden, since = None, self._entered
        if plan.sources:
            hidden = join(self._outputs, plan.sources)
            first = min(plan.sources).hop
            since = self._entered if first < 0 else self._done[first]
        for spent in plan.spent:  # its memory is used again while it is in the caches
            self._outputs[spent] = None
        self._timeline.waited(plan, since)
        return Hop(self._batch, plan, hidden)

    def hand_over(self, hidden: torch.Tensor | None) -> None:
        """The hop last picked is done; its rows wait where they go next. None: behind a head."""
        self._outputs[self._next] = hidden
        for number, start, stop in self._plans[self._next].pauses:
            assert hidden is not None, "rows pause before a head, not behind one"
            run, at = self._runs[number], start
            for member in range(run.first, run.last):
                end = at + int(self._batch.counts[member])
                # a copy, so that the rows of others go when they are not needed any more
                self.paused.append(Paused(member, hidden[at:end].clone()))
                at = end
            assert at == stop
        self._next += 1
        self._done.append(self._timeline.now())

    def _find_runs(self, batch: Batch) -> list[Run]:
        ways = np.stack([batch.ranks, batch.first_stops, batch.last_stops])
        changes = np.flatnonzero((np.diff(ways) != 0).any(0)) + 1
        edges = [0, *changes.tolist(), len(batch.ranks)]
        ends = [0, *np.cumsum(batch.counts).tolist()]
        runs = []
        for number, (i, j) in enumerate(itertools.pairwise(edges)):
            rank, first_stop, last_stop = ways[:, i].tolist()
            state = self._by_rank[rank]
            runs.append(Run(number, state, i, j, ends[i], ends[j], first_stop, last_stop))
        return runs
