"""What one plan starts: sequences with rows to compute, and these rows as a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.batch.arrays import Batch, Ints
from blockllm.engine.sequence.sequence import Sequence
from blockllm.engine.work import Work

Grants = list[tuple[Sequence, Work]]


class Turn(NamedTuple):
    """Members of a batch: sequences, what they do, and their arrays, in the same order. A sequence
    is several members where its rows go through several ranges of stops."""

    sequences: list[Sequence]
    work: list[Work]
    batch: Batch


def make_turn(
    grants: Grants,
    resumed: Mapping[Work, torch.Tensor] | None = None,
    sampled: torch.Tensor | None = None,
    wants_every_row: bool = False,
) -> Turn:
    """The turn that computes these rows. `resumed`: hidden states [rows, hidden_size] of work that
    begins behind the first stop; `sampled`: tokens on the device that the host does not know yet,
    see `Sequence.sampled_at`; `wants_every_row`: logits of all rows."""
    grants = sorted(grants, key=_order)
    sequences, work = [sequence for sequence, _ in grants], [work for _, work in grants]
    # [n] each
    starts, counts, first_stops, last_stops = np.array([w[1:5] for w in work], np.int64).T
    facts = [
        (s.state.rank, s.pool, s.kv.slot, s.num_total, s.num_given)
        for s in sequences
        if s.kv is not None
    ]
    ranks, pools, slots, totals, given = np.array(facts, np.int64).T
    ends = counts.cumsum()
    if ends[-1] == len(grants):  # one row each
        positions, lengths = starts, given
        tokens = np.array([s.tokens[w.start] for s, w in grants], np.int64)
    else:
        owner = np.repeat(np.arange(len(grants)), counts)  # [rows] → member
        positions = np.arange(ends[-1]) + (starts - ends + counts)[owner]
        lengths = given[owner]
        tokens = np.concatenate([s.tokens[w.start : w.start + w.rows] for s, w in grants])
    virtual = tokens < 0 if tokens.min() < 0 else None
    wants_logits = starts + counts == totals
    batch = Batch(
        ranks=ranks,
        pools=pools,
        slots=slots,
        counts=counts,
        firsts=starts,
        given=given,
        has_given=bool((starts < given).any()),
        first_stops=first_stops,
        last_stops=last_stops,
        wants_logits=wants_logits,
        tokens=tokens if virtual is None else np.maximum(tokens, 0),  # any row of the table will do
        positions=positions,
        rope_lengths=np.maximum(lengths, positions + 1),
        virtual=virtual,
        unrotated=None if virtual is None else _unrotated(sequences, counts, virtual),
        sampled=sampled,
        sampled_rows=None if sampled is None else _sampled_rows(sequences, ends, wants_logits),
        resumed={work.index(w): hidden for w, hidden in resumed.items()} if resumed else None,
        wants_every_row=wants_every_row,
    )
    return Turn(sequences, work, batch)


def _order(grant: tuple[Sequence, Work]) -> tuple[int, int, int]:
    """Members that go the same way are neighbours."""
    sequence, work = grant
    return sequence.state.rank, work.first_stop, work.last_stop


def _unrotated(sequences: list[Sequence], counts: Ints, virtual: NDArray[np.bool_]) -> Ints:
    """Virtual tokens of models with a prefix: their keys are given as if rotated."""
    of_prefixes = [s.state.virtual.is_prefix for s in sequences]
    return np.flatnonzero(virtual & np.repeat(of_prefixes, counts))


def _sampled_rows(sequences: list[Sequence], ends: Ints, is_last: NDArray[np.bool_]) -> Ints:
    """Where each sequence's last token stands among those sampled on the device. [rows]"""
    rows = np.full(ends[-1], -1)
    rows[ends - 1] = np.where(is_last, [s.sampled_at for s in sequences], -1)
    return rows
