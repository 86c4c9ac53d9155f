"""y = x Wᵀ + b with W in the layout the device multiplies fastest.

On CPU in fp32, plain torch repacks W inside every call with more than a few rows; oneDNN's
prepacked linear does it once (about twice as fast from 8 rows on, see docs/log.md).
The plain twin is `torch.nn.functional.linear`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

Matmul = Callable[[torch.Tensor], torch.Tensor]  # [rows, in] → [rows, out]

_ROWS_HINT = 16  # rows the packed layout is chosen for; it serves any number


def make_matmul(weight: torch.Tensor, bias: torch.Tensor | None) -> Matmul:
    """A function that multiplies by `weight` [out, in]. When `packs(weight)`, it keeps its own
    copy and the caller may let go of `weight`."""
    return _packed(weight, bias) if packs(weight) else _plain(weight, bias)


def packs(weight: torch.Tensor) -> bool:
    """Whether the weight will be held in a packed copy."""
    narrow = weight.device.type != "cpu" or weight.dtype != torch.float32
    return not narrow and torch._C._has_mkldnn and _has_operators()


def _has_operators() -> bool:
    # internal operators of torch (its compiler's targets): looked up, not relied on
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


def _packed(weight: torch.Tensor, bias: torch.Tensor | None) -> Matmul:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
    run = torch.ops.mkldnn._linear_pointwise.default
    bias = None if bias is None else bias.clone()

    def multiply(x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        spare = padded_rows(rows) - rows
        y: torch.Tensor = run(
            F.pad(x, (0, 0, 0, spare)) if spare else x, packed, bias, "none", [], ""
        )
        return y[:rows]

    return multiply


def padded_rows(rows: int) -> int:
    """The row count to run with. oneDNN compiles and keeps a kernel for every row count it meets
    (measured: 0.9 ms and 0.6 MB each), so only some are used: all up to 8, then coarser steps."""
    step = 1 if rows <= 8 else 8 if rows <= 64 else 32 if rows <= 256 else 128
    return -(-rows // step) * step


def _plain(weight: torch.Tensor, bias: torch.Tensor | None) -> Matmul:
    return lambda x: F.linear(x, weight, bias)
