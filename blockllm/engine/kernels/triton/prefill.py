"""Causal attention of runs of rows over their pages (flash attention), any run from any position.

One program takes a tile of neighbouring rows of one sequence and one KV head with all query heads
that share it: each key and value is read once for all of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from blockllm.engine.kernels.triton.decode import EVERYTHING
from blockllm.engine.kernels.triton.flash import slots, take_in


@triton.jit
def _prefill_kernel(
    q_ptr,  # [rows, KV_HEADS * GROUPS, DIM], heads contiguous
    kv_ptr,  # [pages, 2, KV_HEADS, PAGE, DIM], one layer's
    tables_ptr,  # [sequences, width] int32
    tiles_ptr,  # [tiles, 4] int32: sequence, first row, end, position of the first row
    out_ptr,  # as q
    q_stride,
    out_stride,
    page_stride,
    value_stride,
    table_stride,
    scale,  # of scores, times log2(e)
    window,  # visible positions
    KV_HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_G: tl.constexpr,  # GROUPS, up to a power of two
    BLOCK_M: tl.constexpr,  # rows times BLOCK_G
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile, kv_head = tiles_ptr + tl.program_id(0) * 4, tl.program_id(1)
    sequence = tl.load(tile).to(tl.int64)
    first_row, end_row = tl.load(tile + 1), tl.load(tile + 2)
    first = tl.load(tile + 3)
    if first_row >= end_row:
        return
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    row, g = first_row + m // BLOCK_G, m % BLOCK_G
    position = first + m // BLOCK_G
    known = ((row < end_row) & (g < GROUPS))[:, None] & (d < DIM)[None, :]
    at = ((kv_head * GROUPS + g) * DIM)[:, None] + d[None, :]
    q_at = q_ptr + row.to(tl.int64)[:, None] * q_stride + at
    q = tl.load(q_at, known, other=0.0)
    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    out = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    end = first + end_row - first_row  # positions visible to the tile's last row
    begin = tl.maximum(first - window + 1, 0) // BLOCK_N * BLOCK_N
    table = tables_ptr + sequence * table_stride
    for start in range(begin, end, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        alive = token < end
        slot = slots(table, token, alive, kv_head, page_stride, DIM, PAGE)
        gap = position[:, None] - token[None, :]
        seen = (gap >= 0) & (gap < window)
        best, total, out = take_in(
            q, kv_ptr, kv_ptr + value_stride, slot, alive, seen, scale, best, total, out,
            DIM, BLOCK_D,
        )  # fmt: skip
    total = tl.where(total == 0.0, 1.0, total)  # lanes beyond the tile's rows
    out_at = out_ptr + row.to(tl.int64)[:, None] * out_stride + at
    tl.store(out_at, (out / total[:, None]).to(out_ptr.dtype.element_ty), known)


def lanes(dtype: torch.dtype, dim: int) -> tuple[int, int]:
    """Queries of a tile (rows times heads that share a KV head) and keys of a block: as many as
    fit the shared memory and registers of any GPU from compute capability 8.0 on."""
    if dtype.itemsize == 4:  # multiplied from registers
        return (32, 32) if dim <= 64 else (16, 16)
    return (64, 64) if dim <= 128 else (32, 32)


def tile_rows(dtype: torch.dtype, dim: int, groups: int) -> int:
    """Rows of a tile when `groups` query heads share a KV head."""
    rows: int = max(lanes(dtype, dim)[0] // triton.next_power_of_2(groups), 1)
    return rows


def paged_prefill(
    q: torch.Tensor,  # [rows, heads, dim], rows may lie apart
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    tables: torch.Tensor,  # [sequences, width] int32, rows may lie apart
    tiles: torch.Tensor,  # [tiles, 4] int32: sequence, first row, end, position of first row
    window: int | None,
    out: torch.Tensor,  # as q; only the tiles' rows are written
) -> None:
    """Attention of runs of rows over their sequences' pages, which hold the rows' own keys and
    values already. No tile has more than `tile_rows` rows."""
    (_, heads, dim), (kv_heads, page_size) = q.shape, kv.shape[2:4]
    block_g = triton.next_power_of_2(heads // kv_heads)
    rows = tile_rows(q.dtype, dim, heads // kv_heads)
    _prefill_kernel[(len(tiles), kv_heads)](
        q,
        kv,
        tables,
        tiles,
        out,
        q.stride(0),
        out.stride(0),
        kv.stride(0),
        kv.stride(1),
        tables.stride(0),
        dim**-0.5 * 1.4426950408889634,
        window or EVERYTHING,
        KV_HEADS=kv_heads,
        GROUPS=heads // kv_heads,
        DIM=dim,
        PAGE=page_size,
        BLOCK_G=block_g,
        BLOCK_M=max(rows * block_g, 16),
        BLOCK_D=max(triton.next_power_of_2(dim), 16),
        BLOCK_N=lanes(q.dtype, dim)[1],
        num_warps=4,
        num_stages=1 if q.dtype.itemsize == 4 else 2,
    )
