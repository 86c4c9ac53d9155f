"""The built CPU kernels as functions of tensors. Callers have asked `usable` first."""

from __future__ import annotations

import ctypes

import torch

from blockllm.engine.kernels.build import native_library

_enabled = True


def enable(on: bool) -> None:
    """Use the built kernels where they can be built, or never."""
    global _enabled
    _enabled = on


def usable(x: torch.Tensor) -> bool:
    """Whether the built kernels take this tensor: fp32 on the CPU, and they could be built."""
    return (
        x.dtype is torch.float32 and x.device.type == "cpu" and _enabled and bool(native_library())
    )


def _call(name: str, *arguments: torch.Tensor | int | float) -> None:
    library = native_library()
    assert library is not None
    values: list[ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float] = []
    for value in arguments:
        if isinstance(value, torch.Tensor):
            values.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, float):
            values.append(ctypes.c_float(value))
        else:
            values.append(ctypes.c_int64(value))
    getattr(library, name)(*values, ctypes.c_int(torch.get_num_threads()))


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x: [rows, dim] with unit inner stride → [rows, dim]"""
    out = torch.empty(x.shape)
    rows, dim = x.shape
    _call("rms_norm", out, x, weight, rows, 1, dim, dim, x.stride(0), eps)
    return out


def rms_norm_heads(
    fused: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float
) -> None:
    """Norm `count` heads from head `first` on, in place. fused: [rows, heads, dim], contiguous"""
    part = fused[:, first : first + count]
    rows, stride = len(fused), fused.stride(0)
    _call("rms_norm", part, part, weight, rows, count, fused.shape[2], stride, stride, eps)


def silu_multiply(gate_up: torch.Tensor) -> torch.Tensor:
    """[rows, 2 * size], contiguous → [rows, size]"""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2)
    _call("silu_multiply", out, gate_up, rows, width // 2)
    return out


def rotate_and_write(
    fused: torch.Tensor,  # [rows, heads + 2 kv_heads, dim], contiguous; rotated in place
    cos: torch.Tensor,  # [rows, 1, dim], contiguous
    sin: torch.Tensor,
    kv: torch.Tensor,  # [pages, 2, page_size, kv_heads, dim], one layer's
    write_pages: torch.Tensor,  # [rows] int64
    write_offsets: torch.Tensor,  # [rows] int64
) -> None:
    """Rotate queries and keys, then put keys and values on their pages."""
    kv_heads, dim = kv.shape[3:]
    heads = fused.shape[1] - 2 * kv_heads
    strides = (kv.stride(0), kv.stride(1))
    where = (write_pages, write_offsets)
    _call(
        "rotate_and_write", fused, cos, sin, kv, *strides, *where, len(fused), heads, kv_heads, dim
    )


def paged_decode(
    q: torch.Tensor,  # [n, heads, dim], rows may lie apart
    kv: torch.Tensor,  # [pages, 2, page_size, kv_heads, dim], one layer's
    tables: torch.Tensor,  # [n, width] int32, rows may lie apart
    contexts: torch.Tensor,  # [n] int64
    window: int | None,
) -> torch.Tensor:
    """Attention of one row per sequence over its pages. [n, heads, dim]"""
    n, heads, dim = q.shape
    page_size, kv_heads = kv.shape[2:4]
    out = torch.empty(q.shape)
    strides = (kv.stride(0), kv.stride(1))
    pages = (tables, tables.stride(0), contexts)
    sizes = (n, heads, kv_heads, dim, page_size, window or 0, dim**-0.5)
    _call("paged_decode", out, q, q.stride(0), kv, *strides, *pages, *sizes)
    return out
