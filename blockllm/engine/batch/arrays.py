"""The rows of a turn as flat arrays, and the hops that carry parts of them.

Batch    all rows that a turn computes; members ordered by path, model and stops
RowSet   which of them go through a hop together
HopPlan  what of a hop follows from the models and their row counts alone
Hop      what the executor runs: a plan, the batch it is applied to, and hidden states
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.device.transfer import upload
from blockllm.engine.sequence.virtual import VirtualRows

Ints = NDArray[np.int64]


@dataclass(slots=True, weakref_slot=True, eq=False)
class Batch:
    """Arrays by sequence `[n]` or by row `[rows]`; rows of one sequence are neighbours."""

    ranks: Ints  # [n] the model's position in path order
    pools: Ints  # [n] the KV cache that holds the sequence's pages
    slots: Ints  # [n] its place in that cache's tables
    counts: Ints  # [n] rows
    firsts: Ints  # [n] position of the first row
    given: Ints  # [n] rows of the sequence that are given: virtual tokens and the prompt
    has_given: bool  # whether some of these are among the rows
    first_stops: Ints  # [n] the rows go through these stops of their route: first to last
    last_stops: Ints  # [n]
    wants_logits: NDArray[np.bool_]  # [n] whether a token follows the last row
    tokens: Ints  # [rows]
    positions: Ints  # [rows]
    rope_lengths: (
        Ints  # [rows] lengths that rotate under dynamic rope scaling, see attention/rope.py
    )
    virtual: NDArray[np.bool_] | None = None  # [rows], if any row is a virtual token
    unrotated: Ints | None = None  # rows whose keys are given as if rotated, if `virtual`
    # on the device: tokens that the host does not know yet; [rows] where the row's is there, or -1
    sampled: torch.Tensor | None = None
    sampled_rows: Ints | None = None
    resumed: Mapping[int, torch.Tensor] | None = None  # hidden states, where first_stops > 0
    wants_every_row: bool = False  # logits of all rows, as for scoring

    @property
    def has_prompts(self) -> bool:
        """Whether some sequence has several rows."""
        return len(self.tokens) > len(self.counts)


class Segment(NamedTuple):
    """Neighbouring rows `start:stop` of a hop whose model adds the delta `delta`."""

    start: int
    stop: int
    delta: str


class Source(NamedTuple):
    """Rows `start:stop` of what an earlier hop computed."""

    hop: int  # of the batch; -1 - r: the hidden states with which its run r begins
    start: int
    stop: int


class RowSet(NamedTuple):
    """Rows of a batch that go through a hop together; hops of a plan with equal ones share one."""

    number: int  # among those of the plan
    members: Ints  # [k] indices into the batch, ascending within each arrival
    rows: Ints  # [rows] indices into the batch
    starts: Ints  # [k + 1] first row of each member within the set
    run: slice | None = None  # the rows, where they are neighbours in the batch
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
    pauses: tuple[tuple[int, int, int], ...]  # runs that go no further in this batch, their rows
    ends_attention: bool  # no member's rows meet attention behind the spans
    has_head: bool  # the spans end in a head: what comes of them are logits

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


class Hop(NamedTuple):
    """Spans applied to one batch of rows."""

    batch: Batch
    plan: HopPlan
    hidden: torch.Tensor | None  # [rows, hidden_size]; None before the embedding

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
        if self.batch.wants_every_row:
            return None
        last = self.starts[1:][self.batch.wants_logits[self.members]] - 1
        return None if len(last) == len(self.rows) else last

    @property
    def virtual(self) -> VirtualRows | None:
        """The hop's virtual tokens, None without any."""
        if self.batch.virtual is None:
            return None
        rows = np.flatnonzero(self.batch.virtual[self.rows])
        return VirtualRows(rows, self.batch.positions[self.rows[rows]]) if len(rows) else None

    @property
    def segments(self) -> tuple[tuple[Segment, ...], ...]:
        return self.plan.segments


def fill_tokens(tokens: torch.Tensor, hop: Hop) -> None:
    """Put in the tokens of the hop's rows that only the device knows. tokens: at least [rows], on
    the device; changed in place."""
    batch = hop.batch
    if batch.sampled is None or batch.sampled_rows is None:
        return
    sampled_rows = batch.sampled_rows[hop.rows]
    rows = np.flatnonzero(sampled_rows >= 0)
    if len(rows):
        where, chosen = upload([rows, sampled_rows[rows]], tokens.device)
        tokens[where] = batch.sampled[chosen]


def join(outputs: Mapping[int, torch.Tensor | None], sources: tuple[Source, ...]) -> torch.Tensor:
    """Hidden states that a hop starts from. [rows, hidden_size]"""
    if len(sources) == 1:
        return _take(outputs, sources[0])
    return torch.cat([_take(outputs, source) for source in sources])


def _take(outputs: Mapping[int, torch.Tensor | None], source: Source) -> torch.Tensor:
    output = outputs[source.hop]
    assert output is not None
    whole = source.stop - source.start == output.shape[0]
    return output if whole else output[source.start : source.stop]
