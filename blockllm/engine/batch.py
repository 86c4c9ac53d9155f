"""Sequences → flat arrays of rows, and the hops that carry parts of them.

Turn    all rows of one turn; sequences ordered by path, then model; computed once
Packet  some sequences of the turn that wait at the same span, with their hidden states
Hop     what the executor runs: a packet's rows as index arrays, segments by delta
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.models.rope import RopeTable
from blockllm.engine.sequence import Sequence

Ints = NDArray[np.int64]


class Turn:
    """Rows of one turn. Arrays are indexed by sequence `[n]` or by row `[rows]`."""

    def __init__(self, grants: list[tuple[Sequence, int]]) -> None:
        grants = sorted(grants, key=lambda grant: grant[0].state.rank)
        self.sequences = [sequence for sequence, _ in grants]
        self.counts = np.array([rows for _, rows in grants], np.int64)  # [n]
        self.firsts = np.array([s.num_computed for s in self.sequences], np.int64)  # [n]
        self.starts = np.zeros(len(grants) + 1, np.int64)  # [n + 1]
        np.cumsum(self.counts, out=self.starts[1:])
        self.owner = np.repeat(np.arange(len(grants)), self.counts)  # [rows] → sequence
        offset = self.firsts - self.starts[:-1]
        self.positions = np.arange(self.starts[-1]) + offset[self.owner]  # [rows]
        self.tokens = np.concatenate(
            [s.tokens[s.num_computed : s.num_computed + rows] for s, rows in grants]
        )  # [rows]
        prompts = np.array([s.num_prompt for s in self.sequences], np.int64)
        # length that rotates the row under dynamic rope scaling, see models/rope.py
        self.rope_lengths = np.maximum(prompts[self.owner], self.positions + 1)  # [rows]
        self.wants_logits = np.array(
            [s.num_computed + rows == s.num_total for s, rows in grants], np.bool_
        )  # [n]
        self.slots = np.array([s.kv.slot if s.kv else -1 for s in self.sequences], np.int64)
        self.stops = np.zeros(len(grants), np.int64)  # [n] index of the stop each waits at
        self.rope_tables: dict[object, RopeTable] = {}  # [rows], filled by the executor

    def rows_of(self, members: Ints) -> Ints:
        """Row indices of the given sequences, in their order. [rows of members]"""
        counts = self.counts[members]
        ends = np.cumsum(counts)
        rows: Ints = np.arange(ends[-1]) + np.repeat(self.starts[members] - (ends - counts), counts)
        return rows


class Packet(NamedTuple):
    """Sequences of the turn that wait at one span. `hidden` is None before the embedding."""

    members: Ints  # [k] indices into the turn, ascending within each arrival
    hidden: torch.Tensor | None  # [rows, hidden_size]


class Segment(NamedTuple):
    """Neighbouring rows `start:stop` of a hop whose model adds the delta `delta`."""

    start: int
    stop: int
    delta: str


class Hop(NamedTuple):
    """One span applied to one batch of rows."""

    turn: Turn
    span: int
    members: Ints  # [k]
    rows: Ints  # [rows] indices into the turn
    starts: Ints  # [k + 1] first row of each member within the hop
    hidden: torch.Tensor | None  # [rows, hidden_size]
    segments: tuple[tuple[Segment, ...], ...]  # per block of the span

    @property
    def is_whole_turn(self) -> bool:
        """The hop carries every row of the turn, in the turn's order."""
        return len(self.rows) == len(self.turn.positions) and bool(
            (self.members[1:] > self.members[:-1]).all()
        )


def make_hop(turn: Turn, span: int, packets: list[Packet]) -> Hop:
    """Join everything that waits at a span into one batch."""
    members = np.concatenate([packet.members for packet in packets])
    hidden = [packet.hidden for packet in packets if packet.hidden is not None]
    starts = np.zeros(len(members) + 1, np.int64)
    np.cumsum(turn.counts[members], out=starts[1:])
    return Hop(
        turn=turn,
        span=span,
        members=members,
        rows=turn.rows_of(members),
        starts=starts,
        hidden=(hidden[0] if len(hidden) == 1 else torch.cat(hidden)) if hidden else None,
        segments=_segments(turn, members, starts),
    )


def _segments(turn: Turn, members: Ints, starts: Ints) -> tuple[tuple[Segment, ...], ...]:
    """Runs of members with the same model become one segment per block that has a delta."""
    ranks = [turn.sequences[i].state.rank for i in members]
    edges = [0, *(np.flatnonzero(np.diff(ranks)) + 1), len(members)]
    first = turn.sequences[members[0]].state.stops[turn.stops[members[0]]].stop
    segments: list[list[Segment]] = [[] for _ in first.deltas]
    for left, right in itertools.pairwise(edges):
        member = members[left]
        stop = turn.sequences[member].state.stops[turn.stops[member]].stop
        for block, delta in enumerate(stop.deltas):
            if delta is not None:
                start, end = int(starts[left]), int(starts[right])
                segments[block].append(Segment(start, end, delta.id))
    return tuple(tuple(block) for block in segments)
