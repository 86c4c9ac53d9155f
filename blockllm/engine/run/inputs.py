"""What the rows of a hop bring to the spans: tokens, deltas, rotations, pages.

Made of a batch's arrays when first asked for; hops of one batch share what they have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from blockllm.engine.attention.rope import RopeTable, RotaryEmbedding
from blockllm.engine.attention.rows import AttentionRows, GatheredRows
from blockllm.engine.batch.arrays import Batch, Hop, RowSet, fill_tokens
from blockllm.engine.device.transfer import upload
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.layers.block import BlockExecutor
from blockllm.engine.layers.segments import Segments
from blockllm.observability.timeline import Timeline


class HopInputs(Protocol):
    """What one hop computes on."""

    @property
    def kernels(self) -> Kernels:
        """What computes."""
        ...

    @property
    def hidden(self) -> torch.Tensor | None:
        """[rows, hidden_size]; None before the embedding"""
        ...

    def tokens(self) -> torch.Tensor:
        """[rows]"""
        ...

    def segments(self, index: int, block: BlockExecutor) -> Segments:
        """Which rows add which deltas at the hop's block number `index`."""
        ...

    def attention(
        self, rotary: RotaryEmbedding, timeline: Timeline
    ) -> tuple[AttentionRows, RopeTable]:
        """Where the rows find their pages, and how they rotate. [rows]"""
        ...


class BatchInputs:
    """What the hops of one batch have in common. Keeps no reference to the batch, so that it can
    be kept for as long as the batch is."""

    def __init__(self, caches: Sequence[KVCache], dtype: torch.dtype, kernels: Kernels) -> None:
        self._caches, self._dtype, self.kernels = caches, dtype, kernels
        self._device = caches[0].tensor.device
        self._gathered: dict[int, GatheredRows] = {}  # by number of the set that is gathered
        self._rows: dict[int, AttentionRows] = {}  # by number of the row set
        self._tables: dict[RotaryEmbedding, RopeTable] = {}  # [rows of the batch]
        self._known: dict[tuple[int, RotaryEmbedding], tuple[AttentionRows, RopeTable]] = {}
        self.no_segments = Segments((), {}, 0, self._device, kernels=kernels)

    def gather(self, batch: Batch, carried: RowSet) -> GatheredRows:
        """Index arrays that those of the rows are parts of."""
        rows = carried.whole or carried
        known = self._gathered.get(rows.number)
        if known is None:
            # sequences that share these rows have one KV shape
            cache = self._caches[int(batch.pools[rows.members[0]])]
            known = self._gathered[rows.number] = GatheredRows(batch, rows, cache, self.kernels)
        return known

    def attention(
        self, batch: Batch, carried: RowSet, rotary: RotaryEmbedding, timeline: Timeline
    ) -> tuple[AttentionRows, RopeTable]:
        """See `HopInputs.attention`."""
        key = (carried.number, rotary)
        known = self._known.get(key)
        if known is None:
            with timeline.part("gather"):
                rows = self._rows.get(carried.number)
                if rows is None:
                    rows = AttentionRows(carried, self.gather(batch, carried))
                    self._rows[carried.number] = rows
                known = self._known[key] = rows, self._cut_table(batch, carried, rotary)
        return known

    def _cut_table(self, batch: Batch, carried: RowSet, rotary: RotaryEmbedding) -> RopeTable:
        table = self._tables.get(rotary)
        if table is None:
            table = self._tables[rotary] = self._make_table(batch, rotary)
        if carried.run is not None:
            return table.part(carried.run)
        (rows,) = upload([carried.rows], self._device)
        return table.part(rows)

    def _make_table(self, batch: Batch, rotary: RotaryEmbedding) -> RopeTable:
        if batch.virtual is None and self.kernels.native(self._caches[0].tensor):
            known = rotary.by_position(int(batch.positions.max()) + 1)
            if known is not None:
                return known._replace(at=upload([batch.positions], self._device)[0])
        table = rotary.table(*upload([batch.positions, batch.rope_lengths], self._device))
        if batch.unrotated is not None:
            (unrotated,) = upload([batch.unrotated], self._device)
            table.cos[unrotated], table.sin[unrotated] = 1.0, 0.0
        return table


class EagerInputs:
    """Inputs of a hop that is computed as it comes."""

    def __init__(self, hop: Hop, common: BatchInputs, device: torch.device) -> None:
        self._hop, self._common, self._device = hop, common, device
        self.kernels = common.kernels

    @property
    def hidden(self) -> torch.Tensor | None:
        return self._hop.hidden

    def tokens(self) -> torch.Tensor:
        (tokens,) = upload([self._hop.batch.tokens[self._hop.rows]], self._device)
        fill_tokens(tokens, self._hop)
        return tokens

    def segments(self, index: int, block: BlockExecutor) -> Segments:
        hop, host = self._hop, self._hop.segments[index]
        if not host:
            return self._common.no_segments
        return Segments(
            host,
            block.adapters,
            len(hop.rows),
            self._device,
            virtual=hop.virtual,
            kernels=self.kernels,
        )

    def attention(
        self, rotary: RotaryEmbedding, timeline: Timeline
    ) -> tuple[AttentionRows, RopeTable]:
        return self._common.attention(self._hop.batch, self._hop.plan.carried, rotary, timeline)

    def gathered(self) -> GatheredRows:
        """Index arrays that those of the hop's rows are parts of."""
        return self._common.gather(self._hop.batch, self._hop.plan.carried)
