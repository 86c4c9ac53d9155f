"""What one plan starts: sequences with rows to compute, and these rows as a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.batch import Batch, Ints
from blockllm.engine.sequence import Sequence

Grants = list[tuple[Sequence, int]]  # how many rows each sequence computes next


class Turn(NamedTuple):
    """Sequences, and their batch in the same order."""

    sequences: list[Sequence]
    batch: Batch


def make_turn(
    grants: Grants, sampled: torch.Tensor | None = None, wants_every_row: bool = False
) -> Turn:
    """The turn that computes these rows. `sampled`: tokens on the device that the host does not
    know yet, see `Sequence.sampled_at`; `wants_every_row`: logits of all rows."""
    grants = sorted(grants, key=lambda grant: grant[0].state.rank)
    sequences = [sequence for sequence, _ in grants]
    facts = [
        (s.state.rank, s.state.kv_class, s.kv.slot, rows, s.num_computed, s.num_total, s.num_given)
        for s, rows in grants
        if s.kv is not None
    ]
    ranks, pools, slots, counts, firsts, totals, given = np.array(facts, np.int64).T  # [n] each
    ends = counts.cumsum()
    if ends[-1] == len(grants):  # one row each
        positions = firsts
        tokens = np.array([s.tokens[s.num_computed] for s in sequences], np.int64)
    else:
        owner = np.repeat(np.arange(len(grants)), counts)  # [rows] → sequence
        positions = np.arange(ends[-1]) + (firsts - ends + counts)[owner]
        given = given[owner]
        tokens = np.concatenate([s.tokens[s.num_computed :][:rows] for s, rows in grants])
    virtual = tokens < 0 if tokens.min() < 0 else None
    batch = Batch(
        ranks=ranks,
        pools=pools,
        slots=slots,
        counts=counts,
        firsts=firsts,
        wants_logits=firsts + counts == totals,
        tokens=tokens if virtual is None else np.maximum(tokens, 0),  # any row of the table will do
        positions=positions,
        rope_lengths=np.maximum(given, positions + 1),
        virtual=virtual,
        unrotated=None if virtual is None else _unrotated(sequences, counts, virtual),
        sampled=sampled,
        sources=None if sampled is None else _sources(sequences, ends),
        wants_every_row=wants_every_row,
    )
    return Turn(sequences, batch)


def _unrotated(sequences: list[Sequence], counts: Ints, virtual: NDArray[np.bool_]) -> Ints:
    """Virtual tokens of models with a prefix: their keys are given as if rotated."""
    of_prefixes = [s.state.virtual.is_prefix for s in sequences]
    return np.flatnonzero(virtual & np.repeat(of_prefixes, counts))


def _sources(sequences: list[Sequence], ends: Ints) -> Ints:
    """Where each sequence's last token stands among those sampled on the device. [rows]"""
    sources = np.full(ends[-1], -1)
    sources[ends - 1] = [s.sampled_at for s in sequences]
    return sources
