"""The segments of a hop at one block: which rows add which delta, on the host and on the device."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from blockllm.engine.batch.arrays import Ints, Segment
from blockllm.engine.device.transfer import upload
from blockllm.engine.kernels.adapter_pool import make_tiles, tile_rows
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.sequence.virtual import VirtualRows

Own = TypeVar("Own")


class Segments:
    """Iterates over the host's segments; kernels take `tiles`, made when first asked for."""

    def __init__(
        self,
        host: Sequence[Segment],
        adapters: Mapping[str, int],  # every delta of the block → its index
        rows: int,
        device: torch.device,
        tiles: torch.Tensor | None = None,
        virtual: VirtualRows | None = None,
        kernels: Kernels = ALL_CORES,
    ) -> None:
        """`tiles` are given where they lie on the device already; `kernels`: what computes."""
        self._host, self.adapters, self._device = host, adapters, device
        self.block_rows = tile_rows(rows)
        self._tiles, self._virtual = tiles, virtual
        self.kernels = kernels

    def __bool__(self) -> bool:
        # given tiles are filled anew for every hop that replays what is computed on them
        return bool(self._host) or self._tiles is not None

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._host)

    def have(self, deltas: Set[str]) -> bool:
        """Whether some row adds one of these."""
        return bool(deltas) and any(segment.delta in deltas for segment in self._host)

    def own(self, values: Sequence[Own | None]) -> Iterator[tuple[int, int, Own]]:
        """First row, end and value of each segment whose delta has one; `values` in the order of
        the block's adapters, empty where none has."""
        if values:
            for start, stop, delta in self._host:
                value = values[self.adapters[delta]]
                if value is not None:
                    yield start, stop, value

    def own_virtual(
        self, values: Sequence[Own | None]
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, Own]]:
        """The virtual tokens' rows [v], their numbers [v] and the value of each segment that has
        both; `values` as for `own`."""
        if values and self._virtual is not None:
            for rows, numbers, adapter in self._virtual_parts:
                value = values[adapter]
                if value is not None:
                    yield rows, numbers, value

    @functools.cached_property
    def _virtual_parts(self) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
        assert self._virtual is not None
        parts = []
        for start, stop, delta in self._host:
            first, end = np.searchsorted(self._virtual.rows, (start, stop))
            if first < end:
                inside = [array[first:end] for array in self._virtual]
                rows, numbers = upload(inside, self._device)
                parts.append((rows, numbers, self.adapters[delta]))
        return parts

    def select(self, rows: Ints) -> Segments:
        """The segments of some rows once only these are left: ascending, no virtual tokens."""
        if not self._host:
            return self
        edges = np.searchsorted(rows, [(s.start, s.stop) for s in self._host]).tolist()
        moved = [
            Segment(first, end, s.delta)
            for (first, end), s in zip(edges, self._host, strict=True)
            if first < end
        ]
        return Segments(moved, self.adapters, len(rows), self._device, kernels=self.kernels)

    def host_tiles(self) -> np.ndarray:
        """First row, end, adapter of each tile. [tiles, 3] int32"""
        indexed = [(s.start, s.stop, self.adapters[s.delta]) for s in self._host]
        return make_tiles(indexed, self.block_rows)

    @property
    def tiles(self) -> torch.Tensor:
        """`host_tiles` on the device."""
        if self._tiles is None:
            (self._tiles,) = upload([self.host_tiles()], self._device)
        return self._tiles


class OutputRows(NamedTuple):
    """Rows of a hop that go on behind the last attention of their models, on the host and on the
    device; the others are there for their keys and values only."""

    host: Ints  # [k] ascending
    rows: torch.Tensor  # [k] int64
