"""The small operations of a decoder layer: built kernels where they can be used, else plain."""

from __future__ import annotations

import torch

from blockllm.engine.kernels import native, plain


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm of each row. [rows, dim] → [rows, dim]"""
    if native.usable(x):
        return native.rms_norm(x, weight, eps)
    return plain.rms_norm(x, weight, eps)


def rms_norm_heads(
    fused: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float
) -> None:
    """Norm `count` heads from `first` on, in place. fused: [rows, heads, dim], contiguous"""
    if native.usable(fused):
        native.rms_norm_heads(fused, first, count, weight, eps)
    else:
        part = fused[:, first : first + count]
        part.copy_(plain.rms_norm(part, weight, eps))


def silu_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up. [rows, 2 * size], contiguous → [rows, size]"""
    if native.usable(gate_up):
        return native.silu_multiply(gate_up)
    return plain.silu_multiply(gate_up)
