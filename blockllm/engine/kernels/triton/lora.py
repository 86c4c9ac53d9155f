"""Segmented LoRA: rows of many adapters, of any ranks, in two launches per linear.

Shrink: A x of every row, by its own adapter's A. Expand: y += scale · B (A x) (+ scale · bias)
on the columns of each part. Adapters lie in one pool (`pool.py`) and are read there by offset,
never gathered. Rows without an adapter are in no tile and cost nothing.
(Punica, arXiv 2310.18547, section 4: segments; S-LoRA, arXiv 2311.03285: mixed ranks.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from blockllm.engine.kernels.adapter_pool import LoraPool

_SPLIT = 1024  # columns of x that one program reads; more of them work side by side


@triton.jit
def _shrink_kernel(
    x_ptr,  # [rows, size]
    a_ptr,  # [all ranks, size]
    shrunk_ptr,  # [splits, rows, width] fp32
    tiles_ptr,  # [tiles, 3] first row, end, adapter
    firsts_ptr,  # [adapters + 1] first row of each in `a`
    x_stride,
    size,
    rows,
    width,
    SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0) * 3
    first, end, adapter = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if first >= end:
        return
    a_first = tl.load(firsts_ptr + adapter)
    rank = tl.load(firsts_ptr + adapter + 1) - a_first
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    if tl.program_id(1) * BLOCK_R >= rank:
        return
    row = first + tl.arange(0, BLOCK_M)
    x_row = x_ptr + row.to(tl.int64)[:, None] * x_stride
    a_row = a_ptr + (a_first + r).to(tl.int64)[None, :] * size
    begin = tl.program_id(2) * SPLIT
    total = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for k in range(begin, tl.minimum(begin + SPLIT, size), BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)
        inside = column < size
        x = tl.load(x_row + column[None, :], (row < end)[:, None] & inside[None, :], other=0.0)
        a = tl.load(a_row + column[:, None], inside[:, None] & (r < rank)[None, :], other=0.0)
        total = tl.dot(x, a, total, input_precision="ieee")
    at = (tl.program_id(2) * rows + row).to(tl.int64)[:, None] * width + r[None, :]
    tl.store(shrunk_ptr + at, total, (row < end)[:, None] & (r < rank)[None, :])


@triton.jit
def _expand_kernel(
    shrunk_ptr,  # [splits, rows, width] fp32
    b_ptr,  # flat: each part's B as [rank, out], and its bias [out]
    y_ptr,  # [rows, all columns]
    tiles_ptr,  # [tiles, 3] first row, end, adapter
    columns_ptr,  # [parts + 1] first column of each part in y
    ranks_ptr,  # [adapters, parts + 1] first column of each part in `shrunk`
    places_ptr,  # [adapters, parts, 2] where its B and its bias (-1: none) begin in `b`
    scales_ptr,  # [adapters, parts]
    y_stride,
    rows,
    width,
    PARTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0) * 3
    first, end, adapter = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if first >= end:
        return
    part = tl.program_id(2)
    r_first = tl.load(ranks_ptr + adapter * (PARTS + 1) + part)
    r_end = tl.load(ranks_ptr + adapter * (PARTS + 1) + part + 1)
    y_first = tl.load(columns_ptr + part)
    size = tl.load(columns_ptr + part + 1) - y_first
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    if (r_first >= r_end) | (tl.program_id(1) * BLOCK_N >= size):
        return
    row = first + tl.arange(0, BLOCK_M)
    wanted = (row < end)[:, None] & (n < size)[None, :]
    entry = adapter * PARTS + part
    b_first = tl.load(places_ptr + entry * 2)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(r_first, r_end, BLOCK_R):
        r = start + tl.arange(0, BLOCK_R)
        known = (row < end)[:, None] & (r < r_end)[None, :]
        shrunk = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        for split in range(SPLITS):  # summed in a fixed order: no atomics, the same every time
            at = (split * rows + row).to(tl.int64)[:, None] * width + r[None, :]
            shrunk += tl.load(shrunk_ptr + at, known, other=0.0)
        b_row = b_ptr + b_first + (r - r_first).to(tl.int64)[:, None] * size
        b = tl.load(b_row + n[None, :], (r < r_end)[:, None] & (n < size)[None, :], other=0.0)
        total = tl.dot(shrunk.to(b.dtype), b, total, input_precision="ieee")
    bias_first = tl.load(places_ptr + entry * 2 + 1)
    if bias_first >= 0:
        total += tl.load(b_ptr + bias_first + n, n < size, other=0.0).to(tl.float32)[None, :]
    y_at = y_ptr + row.to(tl.int64)[:, None] * y_stride + (y_first + n)[None, :]
    y = tl.load(y_at, wanted, other=0.0).to(tl.float32)
    y += total * tl.load(scales_ptr + entry)
    tl.store(y_at, y.to(y_ptr.dtype.element_ty), wanted)


def segmented_lora(
    y: torch.Tensor,  # [rows, all columns] with unit inner stride, changed in place
    x: torch.Tensor,  # [rows, size] with unit inner stride
    tiles: torch.Tensor,  # [tiles, 3] int32: first row, end, adapter; empty ones are skipped
    block_rows: int,  # most rows of a tile, a power of two from 16 on
    pool: LoraPool,
) -> None:
    """Add to each row of the tiles what its adapter adds."""
    rows, size = x.shape
    splits = triton.cdiv(size, _SPLIT)
    block_r = min(max(triton.next_power_of_2(pool.width), 16), 64)
    shrunk = x.new_empty(splits, rows, pool.width, dtype=torch.float32)
    block = 128 if x.dtype.itemsize == 2 else 32  # fp32 multiplies from registers, not tensor cores
    _shrink_kernel[(len(tiles), triton.cdiv(pool.width, block_r), splits)](
        x,
        pool.a,
        shrunk,
        tiles,
        pool.firsts,
        x.stride(0),
        size,
        rows,
        pool.width,
        SPLIT=_SPLIT,
        BLOCK_M=block_rows,
        BLOCK_R=block_r,
        BLOCK_K=block,
    )
    parts = len(pool.columns) - 1
    _expand_kernel[(len(tiles), triton.cdiv(pool.widest, block), parts)](
        shrunk,
        pool.b,
        y,
        tiles,
        pool.columns,
        pool.ranks,
        pool.places,
        pool.scales,
        y.stride(0),
        rows,
        pool.width,
        PARTS=parts,
        SPLITS=splits,
        BLOCK_M=block_rows,
        BLOCK_R=min(block_r, 32),
        BLOCK_N=block,
    )
