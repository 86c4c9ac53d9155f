"""The small operations of a decoder layer: the device's built kernels where they can be used
(C++ on the CPU, Triton on a GPU), else their plain twins."""

from __future__ import annotations

import torch

from blockllm.engine.kernels import plain
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kernels.cpu import native


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, kernels: Kernels) -> torch.Tensor:
    """Root-mean-square norm of each row. [rows, dim] → [rows, dim]"""
    if kernels.native(x):
        return native.rms_norm(x, weight, eps, kernels.threads)
    if kernels.triton(x):
        from blockllm.engine.kernels.triton import norm

        return norm.rms_norm(x, weight, eps)
    return plain.rms_norm(x, weight, eps)


def add_rms_norm(
    x: torch.Tensor, added: torch.Tensor, weight: torch.Tensor, eps: float, kernels: Kernels
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + added, and its norm. [rows, dim] → 2 of [rows, dim]"""
    if kernels.triton(x):
        from blockllm.engine.kernels.triton import norm

        return norm.add_rms_norm(x, added, weight, eps)
    x = x + added
    return x, rms_norm(x, weight, eps, kernels)


def rms_norm_heads(
    fused: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float, kernels: Kernels
) -> None:
    """Norm `count` heads from `first` on, in place. fused: [rows, heads, dim], contiguous"""
    if kernels.native(fused):
        native.rms_norm_heads(fused, first, count, weight, eps, kernels.threads)
    elif kernels.triton(fused):
        from blockllm.engine.kernels.triton import norm

        norm.rms_norm_heads(fused, first, count, weight, eps)
    else:
        part = fused[:, first : first + count]
        part.copy_(plain.rms_norm(part, weight, eps))


def silu_multiply(gate_up: torch.Tensor, kernels: Kernels) -> torch.Tensor:
    """silu(gate) * up. [rows, 2 * size], contiguous → [rows, size]"""
    if kernels.native(gate_up):
        return native.silu_multiply(gate_up, kernels.threads)
    if kernels.triton(gate_up):
        from blockllm.engine.kernels.triton import activation

        return activation.silu_multiply(gate_up)
    return plain.silu_multiply(gate_up)


def rotate_and_write(
    fused: torch.Tensor,  # [rows, heads + 2 kv_heads, dim], contiguous
    cos: torch.Tensor,  # [.., 1, dim], contiguous
    sin: torch.Tensor,
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    write_pages: torch.Tensor,  # [rows] int64
    write_offsets: torch.Tensor,  # [rows] int64
    kernels: Kernels,
    rotations: torch.Tensor | None = None,  # [rows] int64, rows of cos and sin; None: in order
) -> None:
    """Rotate queries and keys in place, then put keys and values on their pages."""
    if kernels.native(fused):
        where = (write_pages, write_offsets, rotations)
        native.rotate_and_write(fused, cos, sin, kv, *where, kernels.threads)
        return
    if rotations is not None:
        cos, sin = cos[rotations], sin[rotations]
    if kernels.triton(fused):
        from blockllm.engine.kernels.triton import rotate

        rotate.rotate_and_write(fused, cos, sin, kv, write_pages, write_offsets)
    else:
        kv_heads = kv.shape[2]
        turned = fused[:, : fused.shape[1] - kv_heads]
        turned.copy_(plain.rotate(turned, cos, sin))
        k, v = fused[:, -2 * kv_heads :].chunk(2, dim=1)
        plain.write(kv, write_pages, write_offsets, k, v)
