"""The gated activation between the two halves of an MLP."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_BLOCK = 1024


@triton.jit
def _silu_multiply_kernel(gate_up_ptr, out_ptr, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < size
    gate = tl.load(gate_up_ptr + row * 2 * size + column, inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + (row * 2 + 1) * size + column, inside, other=0.0).to(tl.float32)
    # of the two forms of the sigmoid, the one whose exponent is not positive
    shrunk = tl.exp(-tl.abs(gate))
    silu = gate * tl.where(gate > 0, 1.0, shrunk) / (1.0 + shrunk)
    kind = out_ptr.dtype.element_ty
    out = silu.to(kind).to(tl.float32) * up  # rounded in between, as two operators would
    tl.store(out_ptr + row * size + column, out.to(kind), inside)


def silu_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up. [rows, 2 * size], contiguous → [rows, size]"""
    rows, width = gate_up.shape
    out = gate_up.new_empty(rows, width // 2)
    grid = (rows, triton.cdiv(width // 2, _BLOCK))
    _silu_multiply_kernel[grid](gate_up, out, width // 2, BLOCK=_BLOCK)
    return out
