"""The segments of a hop at one block: which rows add which delta, on the host and on the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from blockllm.engine.batch import Segment
from blockllm.engine.kernels.triton.pool import make_tiles, tile_rows
from blockllm.engine.transfer import upload


class Segments:
    """Iterates over the host's segments; kernels take `tiles`, made when first asked for."""

    def __init__(
        self,
        host: Sequence[Segment],
        adapters: Mapping[str, int],  # every delta of the block → its index
        rows: int,
        device: torch.device,
        tiles: torch.Tensor | None = None,
    ) -> None:
        """`tiles` are given where they lie on the device already."""
        self._host, self.adapters, self._device = host, adapters, device
        self.block_rows = tile_rows(rows)
        self._tiles = tiles

    def __bool__(self) -> bool:
        return bool(self._host)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self._host)

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
