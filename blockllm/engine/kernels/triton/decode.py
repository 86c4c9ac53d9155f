"""Attention of single rows over their pages (flash decoding): the context is split over programs.

One program takes one sequence, one KV head with all query heads that share it, and one part of
the context; a second kernel joins the parts. The number of parts is fixed at launch, their length
follows from the context on the device, so a launch can be captured and replayed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from blockllm.engine.kernels.triton.flash import slots, take_in

_PROGRAMS = 512  # enough to keep every multiprocessor of a large GPU busy
_MOST_SPLITS = 32
EVERYTHING = 1 << 30  # as a window: more positions than any context has


@triton.jit
def _decode_kernel(
    q_ptr,  # [rows, KV_HEADS * GROUPS, DIM], heads contiguous
    kv_ptr,  # [pages, 2, KV_HEADS, PAGE, DIM], one layer's
    tables_ptr,  # [sequences, width] int32
    contexts_ptr,  # [sequences] int32
    members_ptr,  # [n, 2] int32: sequence, its row in q and out
    out_ptr,  # as q
    parts_ptr,  # [n, heads, SPLITS, DIM] fp32, joined later; only if SPLITS > 1
    sums_ptr,  # [n, heads, SPLITS, 2] fp32: largest score, sum of weights
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
    SPLITS: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    member, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence = tl.load(members_ptr + 2 * member).to(tl.int64)
    row = tl.load(members_ptr + 2 * member + 1).to(tl.int64)
    context = tl.load(contexts_ptr + sequence)
    first = tl.maximum(context - window, 0)
    length = tl.cdiv(tl.cdiv(context - first, SPLITS), BLOCK_N) * BLOCK_N
    begin = first + split * length
    end = tl.minimum(begin + length, context)
    g, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    head = kv_head * GROUPS + g
    known = (g < GROUPS)[:, None] & (d < DIM)[None, :]
    at = head[:, None] * DIM + d[None, :]
    q = tl.load(q_ptr + row * q_stride + at, known, other=0.0)
    best = tl.full((BLOCK_G,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_G,), tl.float32)
    out = tl.zeros((BLOCK_G, BLOCK_D), tl.float32)
    table = tables_ptr + sequence * table_stride
    for start in range(begin, end, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        alive = token < end
        slot = slots(table, token, alive, kv_head, page_stride, DIM, PAGE)
        seen = alive[None, :]
        best, total, out = take_in(
            q, kv_ptr, kv_ptr + value_stride, slot, alive, seen, scale, best, total, out,
            DIM, BLOCK_D,
        )  # fmt: skip
    if SPLITS == 1:
        kind = out_ptr.dtype.element_ty
        tl.store(out_ptr + row * out_stride + at, (out / total[:, None]).to(kind), known)
    else:
        part = (member * (KV_HEADS * GROUPS) + head).to(tl.int64) * SPLITS + split
        tl.store(parts_ptr + part[:, None] * DIM + d[None, :], out, known)
        tl.store(sums_ptr + part * 2, best, g < GROUPS)
        tl.store(sums_ptr + part * 2 + 1, total, g < GROUPS)


@triton.jit
def _join_kernel(
    parts_ptr,  # [n, heads, SPLITS, DIM] fp32
    sums_ptr,  # [n, heads, SPLITS, 2] fp32
    members_ptr,  # [n, 2] int32
    out_ptr,  # [rows, heads, DIM]
    out_stride,
    DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    member, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = tl.load(members_ptr + 2 * member + 1).to(tl.int64)
    s, d = tl.arange(0, BLOCK_S), tl.arange(0, BLOCK_D)
    part = (member * tl.num_programs(1) + head) * SPLITS + s
    best = tl.load(sums_ptr + part * 2, s < SPLITS, other=float("-inf"))
    total = tl.load(sums_ptr + part * 2 + 1, s < SPLITS, other=0.0)
    weight = tl.exp2(best - tl.max(best, 0))  # 0 for parts without tokens
    known = (s < SPLITS)[:, None] & (d < DIM)[None, :]
    parts = tl.load(parts_ptr + part[:, None] * DIM + d[None, :], known, other=0.0)
    out = tl.sum(parts * weight[:, None], 0) / tl.sum(total * weight, 0)
    at = row * out_stride + head * DIM + d
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), d < DIM)


def num_splits(n: int, kv_heads: int, tokens: int, block: int) -> int:
    """Parts to cut contexts of up to `tokens` into: enough programs for the device, but none
    with less than one block of tokens."""
    wanted = triton.cdiv(_PROGRAMS, n * kv_heads)
    splits: int = triton.next_power_of_2(max(1, min(wanted, tokens // block, _MOST_SPLITS)))
    return splits


def paged_decode(
    q: torch.Tensor,  # [rows, heads, dim], rows may lie apart
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    tables: torch.Tensor,  # [sequences, width] int32, rows may lie apart
    contexts: torch.Tensor,  # [sequences] int32
    members: torch.Tensor,  # [n, 2] int32: which sequences, and which rows of q they are
    window: int | None,
    out: torch.Tensor,  # as q; only the members' rows are written
) -> None:
    """Attention of one row per sequence over its pages."""
    (_, heads, dim), (kv_heads, page_size), n = q.shape, kv.shape[2:4], len(members)
    block_d = max(triton.next_power_of_2(dim), 16)
    block_n = 64 if block_d * q.dtype.itemsize <= 256 else 32 if q.dtype.itemsize == 2 else 16
    tokens = min(tables.shape[1] * page_size, window or EVERYTHING)
    splits = num_splits(n, kv_heads, tokens, block_n)
    parts = q.new_empty((n, heads, splits, dim) if splits > 1 else (1,), dtype=torch.float32)
    sums = q.new_empty((n, heads, splits, 2), dtype=torch.float32)
    _decode_kernel[(n, kv_heads, splits)](
        q,
        kv,
        tables,
        contexts,
        members,
        out,
        parts,
        sums,
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
        SPLITS=splits,
        BLOCK_G=max(triton.next_power_of_2(heads // kv_heads), 16),
        BLOCK_D=block_d,
        BLOCK_N=block_n,
        num_warps=4,
        num_stages=2,
    )
    if splits > 1:
        _join_kernel[(n, heads)](
            parts,
            sums,
            members,
            out,
            out.stride(0),
            DIM=dim,
            SPLITS=splits,
            BLOCK_S=splits,
            BLOCK_D=block_d,
            num_warps=2,
        )
