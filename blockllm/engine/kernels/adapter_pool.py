"""Where the LoRA kernels find their adapters: one pool per linear, made when adapters change.

Pure torch: also holds the plain twin of the kernels. A fused linear has *parts* (q, k, v), each
with columns of its own in y and, per adapter, a rank of its own (0: the adapter leaves it alone).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Update(NamedTuple):
    """What one adapter adds to one part: scale · (B A x + bias)."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [rank, out]: B transposed
    scale: float
    bias: torch.Tensor | None  # [out]


class LoraPool(NamedTuple):
    """All adapters of one linear; an adapter is its index in the sequence they came in."""

    a: torch.Tensor  # [all ranks, in], adapter by adapter, within it part by part
    b: torch.Tensor  # flat: each B as [rank, out], each bias as [out]
    firsts: torch.Tensor  # [adapters + 1] int32, first row of each adapter in `a`
    ranks: torch.Tensor  # [adapters, parts + 1] int32, where the parts of A x begin
    places: torch.Tensor  # [adapters, parts, 2] int64, where B and bias (-1: none) begin in `b`
    scales: torch.Tensor  # [adapters, parts] fp32
    columns: torch.Tensor  # [parts + 1] int32, where the parts of y begin
    width: int  # largest sum of ranks of one adapter
    widest: int  # columns of the widest part


def make_pool(
    adapters: Sequence[Mapping[str, Update]], columns: Mapping[str, slice]
) -> LoraPool | None:
    """The pool of a linear whose parts are `columns` of y, next to each other and in order;
    keys of each adapter are names of parts. None if no adapter changes this linear."""
    updates = [[adapter.get(name) for name in columns] for adapter in adapters]
    present = [update for row in updates for update in row if update is not None]
    if not present:
        return None
    ranks = np.array([[len(u.a) if u else 0 for u in row] for row in updates], np.int64)
    ranks = np.pad(np.cumsum(ranks, axis=1), ((0, 0), (1, 0)))  # [adapters, parts + 1]
    firsts = np.concatenate([[0], np.cumsum(ranks[:, -1])])
    pieces: list[torch.Tensor] = []
    places = np.full((*ranks[:, 1:].shape, 2), -1, np.int64)
    end = 0
    for i, row in enumerate(updates):
        for j, update in enumerate(row):
            for kind, piece in enumerate((update.b, update.bias) if update else ()):
                if piece is not None:
                    pieces.append(piece.reshape(-1))
                    places[i, j, kind], end = end, end + piece.numel()
    edges = [0, *(part.stop for part in columns.values())]
    device = present[0].a.device
    scales = [[u.scale if u else 0.0 for u in row] for row in updates]
    return LoraPool(
        a=torch.cat([update.a for update in present]),
        b=torch.cat(pieces),
        firsts=torch.from_numpy(firsts.astype(np.int32)).to(device),
        ranks=torch.from_numpy(ranks.astype(np.int32)).to(device),
        places=torch.from_numpy(places).to(device),
        scales=torch.tensor(scales, dtype=torch.float32, device=device),
        columns=torch.tensor(edges, dtype=torch.int32, device=device),
        width=int(ranks[:, -1].max()),
        widest=int(np.diff(edges).max()),
    )


def tile_rows(rows: int) -> int:
    """Rows of a tile for a batch of so many: small ones leave fewer lanes idle when adapters
    have few rows each, large ones read an adapter less often."""
    return 16 if rows <= 256 else 64


def make_tiles(segments: Iterable[tuple[int, int, int]], block_rows: int) -> NDArray[np.int32]:
    """Cut segments (first row, end, adapter) into tiles of at most `block_rows`. [tiles, 3]"""
    tiles = [
        (first, min(first + block_rows, end), adapter)
        for start, end, adapter in segments
        for first in range(start, end, block_rows)
    ]
    return np.array(tiles, np.int32).reshape(-1, 3)


def segmented_lora_plain(
    y: torch.Tensor, x: torch.Tensor, tiles: torch.Tensor, pool: LoraPool
) -> None:
    """The plain twin of `lora.segmented_lora`: tile by tile, part by part."""
    edges = pool.columns.tolist()
    for first, end, adapter in tiles.tolist():
        a = pool.a[pool.firsts[adapter] : pool.firsts[adapter + 1]]
        shrunk = torch.nn.functional.linear(x[first:end], a)  # [rows, sum of ranks]
        bounds = itertools.pairwise(pool.ranks[adapter].tolist())
        for part, (low, high) in enumerate(bounds):
            size = edges[part + 1] - edges[part]
            place, bias = pool.places[adapter, part].tolist()
            scale = float(pool.scales[adapter, part])
            out = y[first:end, edges[part] : edges[part + 1]]
            b = pool.b[place : place + (high - low) * size].view(high - low, size)
            if high > low:
                out.addmm_(shrunk[:, low:high], b, alpha=scale)
            if bias >= 0:
                out.add_(pool.b[bias : bias + size], alpha=scale)
