"""Where rows read and write KV: index arrays for all layers, made for all rows of a batch at once;
hops take parts of them."""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.engine.attention.rope import RopeTable
from blockllm.engine.batch.arrays import Batch, Ints, RowSet
from blockllm.engine.device.transfer import upload
from blockllm.engine.kernels import fused, plain
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.kernels.cpu.structs import KVAccess
from blockllm.engine.kv.cache import KVCache


class DecodeIndex(NamedTuple):
    """What the rows of decoding sequences read, padded to the longest context."""

    tables: torch.Tensor  # [n, bundles, width] pages
    mask: torch.Tensor  # [n, 1, 1, tokens] added to the scores
    padding: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # sequence, page index, offset


class Decoding(NamedTuple):
    """Rows of a hop that are attended to one by one."""

    members: torch.Tensor  # [n] whose they are
    rows: torch.Tensor  # [n]
    contexts: torch.Tensor  # [n] tokens visible to each


class PageArrays(NamedTuple):
    """Where k sequences and their rows find their pages, on the host."""

    tables: NDArray[np.int32]  # [k, bundles, width] pages of each sequence
    write_pages: Ints  # [bundles, rows]
    write_offsets: Ints  # [rows]


class RowArrays(NamedTuple):
    """What the device needs to know of k sequences and their rows, on the host."""

    tables: NDArray[np.int32]  # as in `PageArrays`, as the next two
    write_pages: Ints
    write_offsets: Ints
    visible: NDArray[np.int32]  # [k] tokens visible to each sequence's last row
    singles: NDArray[np.int32]  # [n, 2] sequences with one row, and that row


class RowTensors(NamedTuple):
    """`RowArrays` on the device."""

    tables: torch.Tensor
    write_pages: torch.Tensor
    write_offsets: torch.Tensor
    visible: torch.Tensor
    singles: torch.Tensor


_Indices = TypeVar("_Indices", RowArrays, RowTensors)


class Addresses(NamedTuple):
    """Where `GatheredRows` and what they index lie in main memory."""

    pages: tuple[int, ...]  # the first of `KVAccess`
    tables: int
    write_pages: int
    write_offsets: int
    contexts: int


def single_rows(rows: RowSet) -> NDArray[np.int32]:
    """Members with one row, and that row. [n, 2]"""
    members = np.flatnonzero(np.diff(rows.starts) == 1)
    return np.stack([members, rows.starts[members]], 1).astype(np.int32)


class GatheredRows:
    """Index arrays of rows of a batch, made at once for all hops that carry some of them."""

    def __init__(
        self, batch: Batch, rows: RowSet, cache: KVCache, kernels: Kernels = ALL_CORES
    ) -> None:
        self.rows, self.cache, self.kernels = rows, cache, kernels
        self.counts, self.firsts = batch.counts[rows.members], batch.firsts[rows.members]
        self.contexts = self.firsts + self.counts  # [k] tokens visible to each one's last row
        self.num_given: Ints | None = None  # [k] how many of each one's rows are: they come first
        if batch.has_given:
            left = batch.given[rows.members] - self.firsts
            self.num_given = np.clip(left, 0, self.counts)
        self.pages = self._find_pages(batch)

    def _find_pages(self, batch: Batch) -> PageArrays:
        rows, cache = self.rows, self.cache
        slots = batch.slots[rows.members]
        if rows.has_runs:
            positions, row_slots = batch.positions[rows.rows], np.repeat(slots, self.counts)
        else:
            positions, row_slots = self.firsts, slots
        width = -(-int(self.contexts.max()) // cache.page_size)
        page, offsets = np.divmod(positions, cache.page_size)
        pages = cache.tables[row_slots, :, page].astype(np.int64)  # [rows, bundles]
        pages[positions[:, None] < cache.adopted[row_slots]] = 0  # never written again
        return PageArrays(
            # kernels walk a table's row page by page
            tables=np.ascontiguousarray(cache.tables[slots, :, :width]),
            write_pages=np.ascontiguousarray(pages.T),
            write_offsets=offsets,
        )

    @functools.cached_property
    def arrays(self) -> RowArrays:
        """All that a device needs to know of the rows."""
        visible = self.contexts.astype(np.int32)
        return RowArrays(*self.pages, visible, single_rows(self.rows))

    @functools.cached_property
    def tensors(self) -> RowTensors:
        """`arrays` on the device."""
        return RowTensors(*upload(self.arrays, self.cache.tensor.device))

    @functools.cached_property
    def addresses(self) -> Addresses:
        """Where kernels on the host find the arrays."""
        kv = self.cache.tensor
        pages = (kv.data_ptr(), self.cache.page_size, *kv.stride()[:3], kv.shape[1])
        arrays = (*self.pages, self.contexts)
        return Addresses(pages, *(array.ctypes.data for array in arrays))


def cut_rows(arrays: _Indices, part: RowSet) -> _Indices:
    """What hops with these rows read of their whole's arrays; `singles` fit where each sequence
    of the whole has one row."""
    members, rows = part.within
    return arrays._replace(
        tables=arrays.tables[members],
        write_pages=arrays.write_pages[:, rows],
        write_offsets=arrays.write_offsets[rows],
        visible=arrays.visible[members],
        singles=arrays.singles[: len(part.members)],
    )


class AttentionRows:
    """Index tensors for the rows of one hop, used by all layers that they go through together."""

    def __init__(
        self,
        part: RowSet,
        gathered: GatheredRows,
        tensors: RowTensors | None = None,
        first_bundle: int = 0,
    ) -> None:
        """`tensors` of the part are given where they lie on the device already; then
        `first_bundle` says which is the first that they hold."""
        self.part, self.gathered, self.first_bundle = part, gathered, first_bundle
        self.kernels = gathered.kernels
        self.device, self.page_size = gathered.cache.tensor.device, gathered.cache.page_size
        self.starts, self.has_runs = part.starts, part.has_runs
        members, _ = part.within
        self.counts, self.firsts = gathered.counts[members], gathered.firsts[members]  # [k]
        self.contexts = gathered.contexts[members]
        self._num_given = None if gathered.num_given is None else gathered.num_given[members]
        self._given = tensors
        # filled by the backends, shared by the layers
        self.decode: dict[int | None, DecodeIndex] = {}  # by window
        self.prompts: dict[tuple[int, int | None], torch.Tensor] = {}  # by (member, window)
        self.accesses: dict[int, tuple[KVAccess, object]] = {}  # by rope table
        self._tiles: dict[int, torch.Tensor] = {}  # by rows of a tile

    @functools.cached_property
    def tensors(self) -> RowTensors:
        """The index arrays on the device."""
        if self._given is not None:
            return self._given
        own = cut_rows(self.gathered.tensors, self.part)
        if self.gathered.rows.has_runs:
            (singles,) = upload([single_rows(self.part)], self.device)
            own = own._replace(singles=singles)
        return own

    @functools.cached_property
    def bundle_tables(self) -> tuple[torch.Tensor, ...]:
        """Pages by bundle, [k, width] each."""
        return self.tensors.tables.unbind(1)

    @functools.cached_property
    def _write_pages(self) -> tuple[torch.Tensor, ...]:
        return self.tensors.write_pages.unbind(0)  # [rows] each

    def locate(self, kv_layer: int) -> tuple[torch.Tensor, int]:
        """Keys and values of the rows' chains' layer of this number among those that keep any
        [pages, 2, kv_heads, page_size, d], and the bundle it is in."""
        layers = self.gathered.cache.layers
        bundle, within = divmod(kv_layer, len(layers))
        return layers[within], bundle - self.first_bundle

    @functools.cached_property
    def has_given(self) -> bool:
        """Whether some rows are given, not generated."""
        return self._num_given is not None and bool(self._num_given.any())

    @functools.cached_property
    def generated(self) -> Decoding:
        """The rows that were generated, one by one; all others are in `given_tiles`."""
        own = self.counts if self._num_given is None else self.counts - self._num_given
        members = np.repeat(np.arange(len(own)), own)
        # how many rows of its sequence come behind each
        behind = np.repeat(np.cumsum(own), own) - np.arange(len(members)) - 1
        rows, contexts = self.starts[1:][members] - 1 - behind, self.contexts[members] - behind
        return Decoding(*upload((members, rows, contexts), self.device))

    def given_tiles(self, size: int) -> torch.Tensor:
        """`tiles` of the given rows, also where a sequence has one of them. A row's sums then run
        in an order that depends on the row alone, not on how many are computed with it."""
        given = np.zeros_like(self.counts) if self._num_given is None else self._num_given
        return self._cut_tiles(size, given)

    def tiles(self, size: int) -> torch.Tensor:
        """Runs of rows cut into tiles of at most `size` rows: sequence, first row, end, position
        of the first row. [tiles, 4] int32"""
        return self._cut_tiles(size, np.where(self.counts > 1, self.counts, 0))

    def _cut_tiles(self, size: int, counts: Ints) -> torch.Tensor:
        """Of the first so many rows of each sequence; a backend always asks for the same."""
        known = self._tiles.get(size)
        if known is None:
            tiles = []
            for i in np.flatnonzero(counts).tolist():
                start, first = int(self.starts[i]), self.firsts[i]
                end = start + int(counts[i])
                # the last rows see most: started first, they leave no straggler
                for row in reversed(range(start, end, size)):
                    tiles.append((i, row, min(row + size, end), first + row - start))
            (known,) = upload([np.array(tiles, np.int32)], self.device)
            self._tiles[size] = known
        return known

    def place(self, heads: torch.Tensor, table: RopeTable, kv: torch.Tensor, bundle: int) -> None:
        """Rotate the queries and keys of `heads` [rows, heads + 2 kv_heads, d] in place and put
        keys and values on their pages. kv: [pages, 2, kv_heads, page_size, d] of one layer"""
        where = (self._write_pages[bundle], self.tensors.write_offsets)
        fused.rotate_and_write(heads, table.cos, table.sin, kv, *where, self.kernels, table.at)

    def write(self, kv: torch.Tensor, bundle: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put the rows' keys and values on their pages.

        kv: [pages, 2, kv_heads, page_size, head_dim] of one layer; k, v: [rows, kv_heads, head_dim]
        """
        plain.write(kv, self._write_pages[bundle], self.tensors.write_offsets, k, v)
