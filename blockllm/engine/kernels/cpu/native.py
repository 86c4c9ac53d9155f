"""The built CPU kernels as functions of tensors. Callers have asked `usable` first."""

from __future__ import annotations

import ctypes

import torch

from blockllm.engine.kernels.cpu.build import native_library


def usable(x: torch.Tensor) -> bool:
    """Whether the built kernels take this tensor: fp32 on the CPU, and they could be built."""
    return serves(x.dtype, x.device)


def serves(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the built kernels take tensors of this type there."""
    return dtype is torch.float32 and available(device)


def available(device: torch.device) -> bool:
    """Whether the built kernels serve the device."""
    return device.type == "cpu" and native_library() is not None


def library() -> ctypes.CDLL:
    """The kernels; see build.py for their arguments."""
    found = native_library()
    assert found is not None
    return found


def panel_width() -> int:
    """How many outputs' weights lie together in the panels that the kernels read."""
    return ctypes.c_int32.in_dll(library(), "panel_width").value


def address(tensor: torch.Tensor | None) -> int:
    """Where the tensor's memory begins; null for none."""
    return 0 if tensor is None else tensor.data_ptr()


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, threads: int) -> torch.Tensor:
    """x: [rows, dim] with unit inner stride → [rows, dim]"""
    out = torch.empty(x.shape)
    rows, dim = x.shape
    library().rms_norm(
        *(out.data_ptr(), x.data_ptr(), weight.data_ptr()),
        *(rows, 1, dim, dim, x.stride(0), eps, threads),
    )
    return out


def rms_norm_heads(
    fused: torch.Tensor, first: int, count: int, weight: torch.Tensor, eps: float, threads: int
) -> None:
    """Norm `count` heads from head `first` on, in place. fused: [rows, heads, dim], contiguous"""
    part = fused[:, first : first + count].data_ptr()
    rows, stride = len(fused), fused.stride(0)
    library().rms_norm(
        *(part, part, weight.data_ptr()),
        *(rows, count, fused.shape[2], stride, stride, eps, threads),
    )


def silu_multiply(gate_up: torch.Tensor, threads: int) -> torch.Tensor:
    """[rows, 2 * size], contiguous → [rows, size]"""
    rows, width = gate_up.shape
    out = torch.empty(rows, width // 2)
    library().silu_multiply(out.data_ptr(), gate_up.data_ptr(), rows, width // 2, threads)
    return out


def rotate_and_write(
    fused: torch.Tensor,  # [rows, heads + 2 kv_heads, dim], contiguous; rotated in place
    cos: torch.Tensor,  # [.., 1, dim], contiguous
    sin: torch.Tensor,
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    write_pages: torch.Tensor,  # [rows] int64
    write_offsets: torch.Tensor,  # [rows] int64
    rotations: torch.Tensor | None,  # [rows] int64, rows of cos and sin; None: in order
    threads: int,
) -> None:
    """Rotate queries and keys, then put keys and values on their pages."""
    kv_heads, page_size, dim = kv.shape[2:]
    heads = fused.shape[1] - 2 * kv_heads
    library().rotate_and_write(
        *(fused.data_ptr(), cos.data_ptr(), sin.data_ptr(), address(rotations)),
        *(kv.data_ptr(), kv.stride(0), kv.stride(1)),
        *(write_pages.data_ptr(), write_offsets.data_ptr()),
        *(len(fused), heads, kv_heads, dim, page_size, threads),
    )


def paged_decode(
    q: torch.Tensor,  # [n, heads, dim], rows may lie apart
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    tables: torch.Tensor,  # [n, width] int32, rows may lie apart
    contexts: torch.Tensor,  # [n] int64
    window: int | None,
    threads: int,
) -> torch.Tensor:
    """Attention of one row per sequence over its pages. [n, heads, dim]"""
    n, heads, dim = q.shape
    kv_heads, page_size = kv.shape[2:4]
    out = torch.empty(q.shape)
    library().paged_decode(
        *(out.data_ptr(), q.data_ptr(), q.stride(0)),
        *(kv.data_ptr(), kv.stride(0), kv.stride(1)),
        *(tables.data_ptr(), tables.stride(0), contexts.data_ptr()),
        *(n, heads, kv_heads, dim, page_size, window or 0, dim**-0.5, threads),
    )
    return out


def paged_prefill(
    out: torch.Tensor,  # [rows, heads, dim], contiguous; rows of the tiles are written
    q: torch.Tensor,  # [rows, heads, dim], rows may lie apart
    kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, dim], one layer's
    tables: torch.Tensor,  # [n, width] int32, rows may lie apart
    tiles: torch.Tensor,  # [tiles, 4] int32: sequence, first row, end, position of the first
    window: int | None,
    threads: int,
) -> None:
    """Causal attention of runs of rows over their sequences' pages."""
    heads, dim = q.shape[1:]
    kv_heads, page_size = kv.shape[2:4]
    library().paged_prefill(
        *(out.data_ptr(), out.stride(0), q.data_ptr(), q.stride(0)),
        *(kv.data_ptr(), kv.stride(0), kv.stride(1)),
        *(tables.data_ptr(), tables.stride(0), tiles.data_ptr(), len(tiles)),
        *(heads, kv_heads, dim, page_size, window or 0, dim**-0.5, threads),
    )


def best(logits: torch.Tensor, threads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of each row's largest logits, int64, and whether all of the row is ordered and that
    one finite, bool. logits: [rows, vocab] with unit inner stride → [rows] each"""
    rows, vocab = logits.shape
    tokens, finite = torch.empty(rows, dtype=torch.int64), torch.empty(rows, dtype=torch.bool)
    library().best_rows(
        *(tokens.data_ptr(), finite.data_ptr(), logits.data_ptr(), logits.stride(0)),
        *(rows, vocab, threads),
    )
    return tokens, finite


def draw(
    logits: torch.Tensor,  # [rows, vocab] with unit inner stride
    threads: int,
    rows: torch.Tensor,  # [k] int64, those that draw
    u: torch.Tensor,  # [k] float64 in [0, 1)
    temperatures: torch.Tensor,  # [k] float32, above 0
    min_p: torch.Tensor,  # [k] float32
    top_k: torch.Tensor,  # [k] int64, 1 to vocab
    top_p: torch.Tensor,  # [k] float64
) -> torch.Tensor:
    """Tokens drawn as `sampling/choose.py` does. [k] int64"""
    tokens = torch.empty_like(rows)
    library().draw_rows(
        *(tokens.data_ptr(), logits.data_ptr(), logits.stride(0), rows.data_ptr(), u.data_ptr()),
        *(temperatures.data_ptr(), min_p.data_ptr(), top_k.data_ptr(), top_p.data_ptr()),
        *(len(rows), logits.shape[1], threads),
    )
    return tokens
