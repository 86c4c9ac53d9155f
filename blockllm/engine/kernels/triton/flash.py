"""What both attention kernels do with one block of tokens: find its slots, take it in."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def slots(
    table_ptr,  # [width] int32, pages of one sequence
    token,  # [BLOCK_N] positions
    alive,  # [BLOCK_N] whether they are in the context
    kv_head,
    page_stride,
    DIM: tl.constexpr,
    PAGE: tl.constexpr,
):
    """Where the tokens' keys of one head begin in the layer's pages. [BLOCK_N] int64"""
    page = tl.load(table_ptr + token // PAGE, alive, other=0).to(tl.int64)
    return page * page_stride + (kv_head * PAGE + token % PAGE) * DIM


@triton.jit
def take_in(
    q,  # [BLOCK_M, BLOCK_D] queries of one KV head
    key_ptr,  # the layer's keys
    value_ptr,  # the layer's values
    slot,  # [BLOCK_N] from `slots`
    alive,  # [BLOCK_N]
    seen,  # [BLOCK_M, BLOCK_N] which query sees which token
    scale,  # of scores, times log2(e)
    best,  # [BLOCK_M] largest score so far
    total,  # [BLOCK_M] sum of weights so far
    out,  # [BLOCK_M, BLOCK_D] weighted sum of values so far
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One step of the running softmax; returns the new `best`, `total`, `out`."""
    d = tl.arange(0, BLOCK_D)
    # slots beyond the context may hold anything, NaN too: they are not read
    known = alive[None, :] & (d < DIM)[:, None]
    keys = tl.load(key_ptr + slot[None, :] + d[:, None], known, other=0.0)
    scores = tl.dot(q, keys, input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(best, tl.max(scores, 1))
    # a query that has not seen a token yet: subtract 0 instead of minus infinity
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(best - base)
    known = alive[:, None] & (d < DIM)[None, :]
    values = tl.load(value_ptr + slot[:, None] + d[None, :], known, other=0.0)
    total = total * shrink + tl.sum(weights, 1)
    kept = out * shrink[:, None]
    out = tl.dot(weights.to(values.dtype), values, kept, input_precision="ieee")
    return higher, total, out
