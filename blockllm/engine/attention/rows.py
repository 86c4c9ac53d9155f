"""Where the rows of one hop read and write KV: index arrays for all layers."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.batch import Hop, Ints
from blockllm.engine.kernels import fused as kernels
from blockllm.engine.kernels.layer import Rows
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.models.rope import RopeTable
from blockllm.engine.transfer import upload


class DecodeIndex(NamedTuple):
    """What the rows of decoding sequences read, padded to the longest context."""

    tables: torch.Tensor  # [n, bundles, width] pages
    mask: torch.Tensor  # [n, 1, 1, tokens] added to the scores
    padding: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # sequence, page index, offset


class Decoding(NamedTuple):
    """The sequences of a hop that have one row in it."""

    members: torch.Tensor  # [n]
    rows: torch.Tensor  # [n]
    contexts: torch.Tensor  # [n] tokens visible to each


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


def row_arrays(hop: Hop, cache: KVCache) -> RowArrays:
    """Index arrays of a hop's rows for all layers of their chains."""
    turn, page_size = hop.turn, cache.page_size
    counts, firsts, slots = (a[hop.members] for a in (turn.counts, turn.firsts, turn.slots))
    contexts = firsts + counts
    if len(hop.rows) == len(counts):  # one row each
        single, positions, row_slots = np.arange(len(counts)), firsts, slots
    else:
        single, positions = np.flatnonzero(counts == 1), turn.positions[hop.rows]
        row_slots = np.repeat(slots, counts)
    singles = np.empty((len(single), 2), np.int32)
    singles[:, 0], singles[:, 1] = single, hop.starts[single]
    width = -(-int(contexts.max()) // page_size)
    page, offsets = np.divmod(positions, page_size)
    pages = cache.tables[row_slots, :, page].astype(np.int64)  # [rows, bundles]
    pages[positions[:, None] < cache.adopted[row_slots]] = 0  # never written again
    # kernels walk a table's row page by page
    tables = np.ascontiguousarray(cache.tables[slots, :, :width])
    return RowArrays(
        tables, np.ascontiguousarray(pages.T), offsets, contexts.astype(np.int32), singles
    )


class AttentionRows:
    """Index tensors for the rows of one hop, used by all layers that they go through together."""

    def __init__(
        self,
        hop: Hop,
        cache: KVCache,
        tensors: RowTensors | None = None,
        first_bundle: int = 0,
    ) -> None:
        """`tensors` are given where they lie on the device already; then `first_bundle` says which
        is the first that they hold."""
        self.device, self.page_size = cache.tensor.device, cache.page_size
        self.kv, self.first_bundle = cache.tensor, first_bundle
        self._layers = cache.layers
        self.starts = hop.starts  # [k + 1] first row of each sequence
        self.counts, self.firsts = (a[hop.members] for a in (hop.turn.counts, hop.turn.firsts))
        self.contexts = self.firsts + self.counts  # [k] tokens visible to each one's last row
        if tensors is None:
            tensors = RowTensors(*upload(row_arrays(hop, cache), self.device))
        self.tables, self.write_pages, self.write_offsets, self.visible, self.singles = tensors
        self.bundle_tables = self.tables.unbind(1)  # [k, width] each
        self._write_pages = self.write_pages.unbind(0)  # [rows] each
        self.has_runs = len(hop.rows) > len(self.counts)
        # filled by the backends, shared by the layers
        self.decode: dict[int | None, DecodeIndex] = {}  # by window
        self.prompts: dict[tuple[int, int | None], torch.Tensor] = {}  # by (member, window)
        self.described: dict[int, tuple[Rows, object]] = {}  # by rope table
        self._tiles: dict[int, torch.Tensor] = {}  # by rows of a tile

    def locate(self, kv_layer: int) -> tuple[torch.Tensor, int]:
        """Keys and values of the rows' chains' layer of this number among those that keep any
        [pages, 2, page_size, kv_heads, d], and the bundle it is in."""
        bundle, within = divmod(kv_layer, len(self._layers))
        return self._layers[within], bundle - self.first_bundle

    @functools.cached_property
    def decoding(self) -> Decoding:
        """What the sequences with one row read."""
        members = np.flatnonzero(self.counts == 1)
        arrays = (members, self.starts[members], self.contexts[members])
        return Decoding(*upload(arrays, self.device))

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
        where = (self._write_pages[bundle], self.write_offsets)
        kernels.rotate_and_write(fused, *table, kv, *where)

    def write(self, kv: torch.Tensor, bundle: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put the rows' keys and values on their pages.

        kv: [pages, 2, page_size, kv_heads, head_dim] of one layer; k, v: [rows, kv_heads, head_dim]
        """
        where = (self._write_pages[bundle], self.write_offsets)
        kv[:, 0].index_put_(where, k)
        kv[:, 1].index_put_(where, v)
