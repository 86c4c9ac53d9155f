"""Where the rows of one hop read and write KV: index arrays for one block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.batch import Hop, Ints
from blockllm.engine.kernels import fused as kernels
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.models.rope import RopeTable
from blockllm.engine.transfer import upload


class DecodeIndex(NamedTuple):
    """What the rows of decoding sequences read, padded to the longest context."""

    tables: torch.Tensor  # [n, bundles, width] pages
    mask: torch.Tensor  # [n, 1, 1, tokens] added to the scores
    padding: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # sequence, page index, offset


class RowArrays(NamedTuple):
    """What the device needs to know of a hop's k sequences and their rows, on the host."""

    tables: NDArray[np.int32]  # [k, bundles, width] pages of each sequence
    write_pages: Ints  # [bundles, rows]
    write_offsets: Ints  # [rows]
    visible: NDArray[np.int32]  # [k] tokens visible to each sequence's last row
    singles: NDArray[np.int32]  # [n, 2] sequences with one row, and that row


class RowTensors(NamedTuple):
    """`RowArrays` on the device."""

    tables: torch.Tensor
    write_pages: torch.Tensor
    write_offsets: torch.Tensor
    visible: torch.Tensor
    singles: torch.Tensor


def row_arrays(hop: Hop, cache: KVCache, first_bundle: int, bundles: int) -> RowArrays:
    """Index arrays of a hop for the block whose layers lie in the given bundles."""
    turn, bundle_range = hop.turn, slice(first_bundle, first_bundle + bundles)
    counts = turn.counts[hop.members]
    contexts = turn.firsts[hop.members] + counts
    slots = turn.slots[hop.members]
    width = -(-int(contexts.max()) // cache.page_size)
    tables = cache.tables[slots, bundle_range, :width]
    if len(hop.rows) == len(counts):  # one row each
        single, positions, row_slots = np.arange(len(counts)), contexts - 1, slots
    else:
        single, positions = np.flatnonzero(counts == 1), turn.positions[hop.rows]
        row_slots = np.repeat(slots, counts)
    page, offsets = np.divmod(positions, cache.page_size)
    pages = cache.tables[row_slots, bundle_range, page].T.astype(np.int64, order="C")
    pages[:, positions < cache.adopted[row_slots, first_bundle]] = 0  # shared: never written again
    singles = np.empty((len(single), 2), np.int32)
    singles[:, 0], singles[:, 1] = single, hop.starts[single]
    # kernels walk a table's row page by page
    tables = np.ascontiguousarray(tables)
    return RowArrays(tables, pages, offsets, contexts.astype(np.int32), singles)


class AttentionRows:
    """Index tensors for one hop at one block, made once and used by all its layers."""

    def __init__(
        self,
        hop: Hop,
        cache: KVCache,
        first_bundle: int,
        bundles: int,
        tensors: RowTensors | None = None,
    ) -> None:
        """`tensors` are given where they lie on the device already."""
        turn, self.device = hop.turn, cache.tensor.device
        self.page_size = cache.page_size
        self.starts = hop.starts  # [k + 1] first row of each sequence
        self.counts: Ints = turn.counts[hop.members]  # [k] rows of each sequence
        self.firsts: Ints = turn.firsts[hop.members]  # [k] position of its first row
        self.contexts: Ints = self.firsts + self.counts  # [k] tokens visible to its last row
        if tensors is None:
            arrays = row_arrays(hop, cache, first_bundle, bundles)
            tensors = RowTensors(*upload(arrays, self.device))
        self.tables, self.write_pages, self.write_offsets, self.visible, self.singles = tensors
        self.has_runs = len(hop.rows) > len(self.counts)
        # filled by the backends, shared by the block's layers
        self.decode: dict[int | None, DecodeIndex] = {}  # by window
        self.prompts: dict[tuple[int, int | None], torch.Tensor] = {}  # by (member, window)
        self._tiles: dict[int, torch.Tensor] = {}  # by rows of a tile

    def tiles(self, size: int) -> torch.Tensor:
        """Runs of rows cut into tiles of at most `size` rows: sequence, first row, end, position
        of the first row. [tiles, 4] int32"""
        known = self._tiles.get(size)
        if known is None:
            tiles = []
            for i in np.flatnonzero(self.counts > 1).tolist():
                start, end, first = int(self.starts[i]), int(self.starts[i + 1]), self.firsts[i]
                # the last rows see most: started first, they leave no straggler
                for row in reversed(range(start, end, size)):
                    tiles.append((i, row, min(row + size, end), first + row - start))
            (known,) = upload([np.array(tiles, np.int32)], self.device)
            self._tiles[size] = known
        return known

    def place(self, fused: torch.Tensor, table: RopeTable, kv: torch.Tensor, bundle: int) -> None:
        """Rotate the queries and keys of `fused` [rows, heads + 2 kv_heads, d] in place and put
        keys and values on their pages. kv: [pages, 2, page_size, kv_heads, d] of one layer"""
        where = (self.write_pages[bundle], self.write_offsets)
        kernels.rotate_and_write(fused, *table, kv, *where)

    def write(self, kv: torch.Tensor, bundle: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put the rows' keys and values on their pages.

        kv: [pages, 2, page_size, kv_heads, head_dim] of one layer; k, v: [rows, kv_heads, head_dim]
        """
        where = (self.write_pages[bundle], self.write_offsets)
        kv[:, 0].index_put_(where, k)
        kv[:, 1].index_put_(where, v)
