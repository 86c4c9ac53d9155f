"""What a hop costs: a span's fitted time by rows and KV tokens (design law 8).

    seconds = constant
            + per_row    · max(rows, knee)       weights are read once, then arithmetic counts
            + per_output · max(outputs, knee)    the head, for rows whose next token is wanted
            + per_token  · kv_tokens             attention of sequences that compute one row
            + per_pair   · pairs                 attention of chunks: rows times tokens they see
            + per_chunk  · chunks
            + per_ridden · ridden                rows that add a delta
            + per_rider  · riders                deltas that are added

Below the knee a hop costs what reading the weights costs (bytes / bandwidth); above it, what
multiplying costs (FLOPs / rate). Pure: policies and the simulator call it; offline/ measures.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import msgspec
import numpy as np

from blockllm.engine.batch.arrays import Hop


class HopSize(NamedTuple):
    """What the time of a hop depends on. A chunk is a sequence that computes several rows."""

    rows: int
    outputs: int  # rows whose logits are wanted
    kv_tokens: int  # tokens in the contexts of sequences with one row, summed
    pairs: int = 0  # (row, token it attends to) of chunks
    chunks: int = 0
    ridden: int = 0  # rows whose model adds a delta to the span
    riders: int = 0  # how many deltas that are, in the block with most

    @classmethod
    def decoding(cls, rows: int, kv_tokens: int) -> HopSize:
        """Of as many sequences that compute one row each."""
        return cls(rows, rows, kv_tokens)


def size_of(hop: Hop) -> HopSize:
    """The size of a hop that is about to run."""
    batch, members = hop.batch, hop.members
    counts, firsts = batch.counts[members], batch.firsts[members]  # [k]
    single = counts == 1
    # rows first + 1 .. first + count of a sequence attend to as many tokens
    pairs = counts * (2 * firsts + counts + 1) // 2
    ridden = np.zeros(len(hop.rows), bool)
    for segments in hop.segments:
        for segment in segments:
            ridden[segment.start : segment.stop] = True
    wanted = len(hop.rows) if batch.wants_every_row else int(batch.wants_logits[members].sum())
    return HopSize(
        rows=len(hop.rows),
        outputs=wanted,
        kv_tokens=int(pairs[single].sum()),
        pairs=int(pairs[~single].sum()),
        chunks=int((~single).sum()),
        ridden=int(ridden.sum()),
        riders=max(len({segment.delta for segment in segments}) for segments in hop.segments),
    )


class SpanCost(msgspec.Struct, frozen=True):
    """The terms of one span on one device, in seconds; `knee` in rows."""

    constant: float
    per_row: float
    per_output: float
    per_token: float
    per_pair: float
    per_chunk: float
    per_ridden: float
    per_rider: float
    knee: float

    def seconds(self, size: HopSize) -> float:
        """Estimated time of a hop."""
        terms = msgspec.structs.astuple(self)[:-1]
        return float(sum(map(operator.mul, terms, features(size, self.knee))))

    def estimate(self, rows: int, kv_tokens: int) -> float:
        """Seconds of a hop of `rows` sequences that compute one row each and have `kv_tokens`
        tokens in their contexts together."""
        return self.seconds(HopSize.decoding(rows, kv_tokens))


def features(size: HopSize, knee: float) -> tuple[float, ...]:
    """What the terms of a `SpanCost` are multiplied by, in their order."""
    outputs = max(size.outputs, knee) if size.outputs else 0.0
    rest = (size.kv_tokens, size.pairs, size.chunks, size.ridden, size.riders)
    return (1.0, max(size.rows, knee), outputs, *map(float, rest))
