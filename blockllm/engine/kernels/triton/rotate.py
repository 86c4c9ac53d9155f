"""Rotate queries and keys in place and put keys and values on their pages: one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _turn(x, other, cos, sin, TYPE: tl.constexpr):
    """x * cos + other * sin in fp32, each rounded to TYPE as separate operators would."""
    kept = (x * cos.to(tl.float32)).to(TYPE).to(tl.float32)
    moved = (other * sin.to(tl.float32)).to(TYPE).to(tl.float32)
    return (kept + moved).to(TYPE).to(tl.float32)


@triton.jit
def _rotate_and_write_kernel(
    fused_ptr,  # [rows, HEADS + 2 * KV_HEADS, 2 * HALF], contiguous
    cos_ptr,  # [rows, 1, 2 * HALF], contiguous
    sin_ptr,  # as cos
    kv_ptr,  # [pages, 2, KV_HEADS, page_size, 2 * HALF], one layer's
    page_ptr,  # [rows] int64
    offset_ptr,  # [rows] int64
    page_stride,
    value_stride,
    page_size,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    column = tl.arange(0, BLOCK)
    inside = column < HALF
    kind = fused_ptr.dtype.element_ty
    fused = fused_ptr + (row * (HEADS + 2 * KV_HEADS) + head) * 2 * HALF + column
    left = tl.load(fused, inside, other=0.0).to(tl.float32)
    right = tl.load(fused + HALF, inside, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:
        table = row * 2 * HALF + column
        first = _turn(
            left,
            -right,
            tl.load(cos_ptr + table, inside, other=0.0),
            tl.load(sin_ptr + table, inside, other=0.0),
            kind,
        )
        second = _turn(
            right,
            left,
            tl.load(cos_ptr + table + HALF, inside, other=0.0),
            tl.load(sin_ptr + table + HALF, inside, other=0.0),
            kind,
        )
        tl.store(fused, first.to(kind), inside)
        tl.store(fused + HALF, second.to(kind), inside)
        left = first
        right = second
    if head >= HEADS:
        is_value = (head >= HEADS + KV_HEADS).to(tl.int64)
        kv_head = head - HEADS - is_value * KV_HEADS
        page, offset = tl.load(page_ptr + row), tl.load(offset_ptr + row)
        slot = page * page_stride + is_value * value_stride
        place = kv_ptr + slot + (kv_head * page_size + offset) * 2 * HALF + column
        tl.store(place, left.to(kind), inside)
        tl.store(place + HALF, right.to(kind), inside)


def rotate_and_write(
    fused: torch.Tensor,  # [rows, heads + 2 kv_heads, dim], contiguous
    cos: torch.Tensor,  # [rows, 1, dim], contiguous
    sin: torch.Tensor,
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    write_pages: torch.Tensor,  # [rows] int64
    write_offsets: torch.Tensor,  # [rows] int64
) -> None:
    """Rotate queries and keys, then put keys and values on their pages."""
    rows, all_heads, dim = fused.shape
    kv_heads, page_size = kv.shape[2:4]
    _rotate_and_write_kernel[(rows, all_heads)](
        fused,
        cos,
        sin,
        kv,
        write_pages,
        write_offsets,
        kv.stride(0),
        kv.stride(1),
        page_size,
        HEADS=all_heads - 2 * kv_heads,
        KV_HEADS=kv_heads,
        HALF=dim // 2,
        BLOCK=triton.next_power_of_2(dim // 2),
        num_warps=1,
    )
