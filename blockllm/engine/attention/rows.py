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


class _Places(NamedTuple):
    """Where the rows of a hop stand in their sequences: the same in every block."""

    counts: Ints  # [k] rows of each sequence
    firsts: Ints  # [k] position of its first row
    contexts: Ints  # [k] tokens visible to its last row
    slots: Ints  # [k]
    positions: Ints  # [rows]
    row_slots: Ints  # [rows]
    page: Ints  # [rows] index of the page in the sequence
    offsets: Ints  # [rows] within the page
    visible: NDArray[np.int32]  # as in RowArrays
    singles: NDArray[np.int32]  # as in RowArrays
    width: int  # pages of the longest context


def _places(hop: Hop, page_size: int) -> _Places:
    # a hop that carries the whole turn finds what the one before it found
    if not hop.plan.is_whole_turn:
        return _find_places(hop, page_size)
    known: _Places | None = hop.turn.places.get(page_size)
    if known is None:
        known = hop.turn.places[page_size] = _find_places(hop, page_size)
    return known


def _find_places(hop: Hop, page_size: int) -> _Places:
    turn = hop.turn
    counts, firsts, slots = (a[hop.members] for a in (turn.counts, turn.firsts, turn.slots))
    contexts = firsts + counts
    if len(hop.rows) == len(counts):  # one row each
        single, positions, row_slots = np.arange(len(counts)), firsts, slots
    else:
        single, positions = np.flatnonzero(counts == 1), turn.positions[hop.rows]
        row_slots = np.repeat(slots, counts)
    page, offsets = np.divmod(positions, page_size)
    singles = np.empty((len(single), 2), np.int32)
    singles[:, 0], singles[:, 1] = single, hop.starts[single]
    width = -(-int(contexts.max()) // page_size)
    where = (positions, row_slots, page, offsets)
    return _Places(
        counts, firsts, contexts, slots, *where, contexts.astype(np.int32), singles, width
    )


def row_arrays(hop: Hop, cache: KVCache, first_bundle: int, bundles: int) -> RowArrays:
    """Index arrays of a hop for the block whose layers lie in the given bundles."""
    at, bundle_range = _places(hop, cache.page_size), slice(first_bundle, first_bundle + bundles)
    # kernels walk a table's row page by page
    tables = np.ascontiguousarray(cache.tables[at.slots, bundle_range, : at.width])
    pages = cache.tables[at.row_slots, bundle_range, at.page].T.astype(np.int64, order="C")
    shared = at.positions < cache.adopted[at.row_slots, first_bundle]
    pages[:, shared] = 0  # never written again
    return RowArrays(tables, pages, at.offsets, at.visible, at.singles)


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
        self.device, self.page_size = cache.tensor.device, cache.page_size
        self.starts = hop.starts  # [k + 1] first row of each sequence
        at = _places(hop, cache.page_size)
        self.counts, self.firsts, self.contexts = at.counts, at.firsts, at.contexts  # [k] each
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
