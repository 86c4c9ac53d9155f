"""Sequences → flat arrays of rows, and the hops that carry parts of them.

Turn     all rows of one turn; sequences ordered by path, then model; computed once
RowSet   which of them go through a hop together
HopPlan  what of a hop follows from the models and their row counts alone
Common   what the hops of a turn that carry the same rows have in common; computed once
Hop      what the executor runs: a plan, the turn it is applied to, and hidden states
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.models.rope import RopeTable, RotaryEmbedding
from blockllm.engine.sequence import Sequence
from blockllm.engine.transfer import upload
from blockllm.engine.virtual import VirtualRows
from blockllm.observability.timeline import OFF, Timeline

if TYPE_CHECKING:
    from blockllm.engine.attention.rows import AttentionRows, GatheredRows

Ints = NDArray[np.int64]


class Turn:
    """Rows of one turn. Arrays are indexed by sequence `[n]` or by row `[rows]`."""

    def __init__(
        self,
        grants: list[tuple[Sequence, int]],
        timeline: Timeline = OFF,
        sampled: torch.Tensor | None = None,
    ) -> None:
        """`sampled`: tokens on the device that the host does not know yet, see
        `Sequence.sampled_at`."""
        self.timeline = timeline
        grants = sorted(grants, key=lambda grant: grant[0].state.rank)
        self.sequences = [sequence for sequence, _ in grants]
        facts = [
            (s.state.rank, rows, s.num_computed, s.num_total, s.num_given, s.kv.slot)
            for s, rows in grants
            if s.kv is not None
        ]
        columns = np.array(facts, np.int64).T
        self.ranks, self.counts, self.firsts, totals, given, self.slots = columns  # [n] each
        ends = self.counts.cumsum()
        starts = ends - self.counts
        if ends[-1] == len(grants):  # one row each
            self.positions = self.firsts  # [rows]
            self.rope_lengths = np.maximum(given, self.firsts + 1)  # [rows]
            tokens = [s.tokens[s.num_computed] for s in self.sequences]
            self.tokens = np.array(tokens, np.int64)  # [rows]
        else:
            owner = np.repeat(np.arange(len(grants)), self.counts)  # [rows] → sequence
            self.positions = np.arange(ends[-1]) + (self.firsts - starts)[owner]
            # length that rotates the row under dynamic rope scaling, see models/rope.py
            self.rope_lengths = np.maximum(given[owner], self.positions + 1)
            self.tokens = np.concatenate(
                [s.tokens[s.num_computed : s.num_computed + rows] for s, rows in grants]
            )
        self.virtual: NDArray[np.bool_] | None = None  # [rows], if any row is a virtual token
        if self.tokens.min() < 0:
            self.virtual = self.tokens < 0
            self.tokens = np.maximum(self.tokens, 0)  # any row of the table will do
        self.sampled = sampled
        self.sources: Ints | None = None  # [rows] where in `sampled` the row's token is, or -1
        if sampled is not None:
            self.sources = np.full(ends[-1], -1)
            self.sources[ends - 1] = [s.sampled_at for s in self.sequences]
        self.wants_logits = self.firsts + self.counts == totals  # [n]
        self.wants_every_row = False  # scoring: logits of all rows, wanted or not
        # filled by the executor
        self.rope_tables: dict[RotaryEmbedding, RopeTable] = {}  # [rows]
        self.gathered: dict[int, GatheredRows] = {}  # by number of the set that is gathered

    @property
    def has_prompts(self) -> bool:
        """Whether some sequence has several rows."""
        return len(self.tokens) > len(self.sequences)

    def unrotated(self) -> Ints:
        """Rows whose keys are given as if rotated: virtual tokens of models with a prefix."""
        if self.virtual is None:
            return np.empty(0, np.int64)
        of_prefixes = [s.state.virtual.is_prefix for s in self.sequences]
        return np.flatnonzero(self.virtual & np.repeat(of_prefixes, self.counts))


class Segment(NamedTuple):
    """Neighbouring rows `start:stop` of a hop whose model adds the delta `delta`."""

    start: int
    stop: int
    delta: str


class Source(NamedTuple):
    """Rows `start:stop` of what an earlier hop of the turn computed."""

    hop: int
    start: int
    stop: int


class RowSet(NamedTuple):
    """Rows of a turn that go through a hop together; hops of a plan with equal ones share one."""

    number: int  # among those of the plan
    members: Ints  # [k] indices into the turn, ascending within each arrival
    rows: Ints  # [rows] indices into the turn
    starts: Ints  # [k + 1] first row of each member within the set
    run: slice | None = None  # the rows, where they are neighbours in the turn
    # the set that they are neighbours in as well and that index arrays are made for at once; None:
    # these are made for the rows alone
    whole: RowSet | None = None
    first_member: int = 0  # of the whole
    first_row: int = 0

    @property
    def has_runs(self) -> bool:
        """Whether some sequence has several rows."""
        return len(self.rows) > len(self.members)

    @property
    def within(self) -> tuple[slice, slice]:
        """Which members and which rows of the whole these are."""
        member, row = self.first_member, self.first_row
        return slice(member, member + len(self.members)), slice(row, row + len(self.rows))


class HopPlan(NamedTuple):
    """Which sequences go through which spans; equal for turns of equal models and counts."""

    spans: tuple[int, ...]  # in a row; no sequence joins or leaves between them
    first_kv_layer: int  # decoder layers before them, in the chains of all members
    models: tuple[str, ...]
    carried: RowSet
    sources: tuple[Source, ...]  # of the hidden states; none before the embedding
    segments: tuple[tuple[Segment, ...], ...]  # per block of the spans
    spent: tuple[int, ...]  # hops whose hidden states are not needed after this one
    ends_attention: bool  # no member's rows meet attention behind the spans

    @property
    def span(self) -> int:
        """The first one: timelines show the hop on its track."""
        return self.spans[0]

    def facts(self) -> dict[str, Any]:
        """What a timeline says about the hop."""
        return {
            "spans": list(self.spans),
            "rows": len(self.carried.rows),
            "sequences": len(self.carried.members),
            "models": list(self.models),
        }


class Common:
    """What the hops of a turn that carry the same rows have in common, made by the first one."""

    def __init__(self) -> None:
        self.attention: AttentionRows | None = None
        self.rope_tables: dict[RotaryEmbedding, RopeTable] = {}  # [rows of the hop]


class Hop(NamedTuple):
    """Spans applied to one batch of rows."""

    turn: Turn
    plan: HopPlan
    hidden: torch.Tensor | None  # [rows, hidden_size]; None before the embedding
    common: Common

    @property
    def members(self) -> Ints:
        return self.plan.carried.members

    @property
    def rows(self) -> Ints:
        return self.plan.carried.rows

    @property
    def starts(self) -> Ints:
        return self.plan.carried.starts

    @property
    def wanted(self) -> Ints | None:
        """Rows whose next token is wanted, each the last of its sequence; None if all are."""
        if self.turn.wants_every_row:
            return None
        last = self.starts[1:][self.turn.wants_logits[self.members]] - 1
        return None if len(last) == len(self.rows) else last

    @property
    def virtual(self) -> VirtualRows | None:
        """The hop's virtual tokens, None without any."""
        if self.turn.virtual is None:
            return None
        rows = np.flatnonzero(self.turn.virtual[self.rows])
        return VirtualRows(rows, self.turn.positions[self.rows[rows]]) if len(rows) else None

    @property
    def segments(self) -> tuple[tuple[Segment, ...], ...]:
        return self.plan.segments


def fill_tokens(tokens: torch.Tensor, hop: Hop) -> None:
    """Put in the tokens of the hop's rows that only the device knows. tokens: at least [rows], on
    the device; changed in place."""
    turn = hop.turn
    if turn.sampled is None or turn.sources is None:
        return
    sources = turn.sources[hop.rows]
    rows = np.flatnonzero(sources >= 0)
    if len(rows):
        where, chosen = upload([rows, sources[rows]], tokens.device)
        tokens[where] = turn.sampled[chosen]


def join(outputs: SequenceOf[torch.Tensor | None], sources: tuple[Source, ...]) -> torch.Tensor:
    """Hidden states that a hop starts from. [rows, hidden_size]"""
    if len(sources) == 1:
        return _take(outputs, sources[0])
    return torch.cat([_take(outputs, source) for source in sources])


def _take(outputs: SequenceOf[torch.Tensor | None], source: Source) -> torch.Tensor:
    output = outputs[source.hop]
    assert output is not None
    whole = source.stop - source.start == output.shape[0]
    return output if whole else output[source.start : source.stop]
