"""Root-mean-square norms: of rows, of rows after a residual is added, of heads in place."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _norm(x, weight, eps, DIM: tl.constexpr, TYPE: tl.constexpr):
    """fp32 statistics, rounded to TYPE before the weight is applied (as the reference does)."""
    mean = tl.sum(x * x, 0) / DIM
    scaled = (x * tl.rsqrt(mean + eps)).to(TYPE).to(tl.float32)
    return (scaled * weight).to(TYPE)


@triton.jit
def _rms_norm_kernel(
    x_ptr,  # [rows, inner, DIM]
    added_ptr,  # [rows, DIM], only with ADD: x += added, before the norm
    weight_ptr,  # [DIM]
    sum_ptr,  # [rows, DIM], only with ADD: x + added
    out_ptr,  # as x
    x_stride,
    added_stride,
    out_stride,
    eps,
    INNER: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    ADD: tl.constexpr,
):
    row = (tl.program_id(0) // INNER).to(tl.int64)
    head = tl.program_id(0) % INNER
    column = tl.arange(0, BLOCK)
    inside = column < DIM
    at = head * DIM + column
    kind = out_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_stride + at, inside, other=0.0).to(tl.float32)
    if ADD:
        added = tl.load(added_ptr + row * added_stride + at, inside, other=0.0).to(tl.float32)
        x = (x + added).to(kind)
        tl.store(sum_ptr + row * DIM + at, x, inside)
        x = x.to(tl.float32)
    weight = tl.load(weight_ptr + column, inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * out_stride + at, _norm(x, weight, eps, DIM, kind), inside)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x: [rows, dim] with unit inner stride → [rows, dim]"""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _launch(x, x, weight, out, out, eps, 1)
    return out


def add_rms_norm(
    x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + added and its norm. x, added: [rows, dim] with unit inner stride → 2 of [rows, dim]"""
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    out = torch.empty_like(total)
    _launch(x, added, weight, total, out, eps, 1)
    return total, out


def rms_norm_heads(
    fused: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float
) -> None:
    """Norm `count` heads from head `first` on, in place. fused: [rows, heads, dim], contiguous"""
    part = fused[:, first : first + count]
    _launch(part, part, weight, part, part, eps, count)


def _launch(
    x: torch.Tensor,
    added: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    out: torch.Tensor,
    eps: float,
    inner: int,
) -> None:
    dim = x.shape[-1]
    block = triton.next_power_of_2(dim)
    strides = (x.stride(0), added.stride(0), out.stride(0))
    _rms_norm_kernel[(len(x) * inner,)](
        x,
        added,
        weight,
        total,
        out,
        *strides,
        eps,
        INNER=inner,
        DIM=dim,
        BLOCK=block,
        ADD=added is not x,
        num_warps=min(max(block // 512, 1), 16),
    )
