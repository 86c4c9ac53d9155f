"""y = x Wᵀ + b with W in the layout the device multiplies fastest.

On the CPU in fp32 our own kernels hold a packed copy, of 16-bit weights in 16 bits; elsewhere torch
multiplies by W as it is.
The plain twins are `torch.nn.functional.linear` and `plain.int8_linear`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from blockllm.engine.kernels import plain
from blockllm.engine.kernels.cpu import native
from blockllm.engine.kernels.cpu.packed import PackedInt8, PackedLinear

Matmul = Callable[[torch.Tensor], torch.Tensor]  # [rows, in] → [rows, out]


def make_matmul(
    weights: Sequence[torch.Tensor],  # [out, in] each; outputs in this order; in `dtype` or int8
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,  # [out] of all, if the weights are int8
    dtype: torch.dtype,
) -> Matmul:
    """A function that multiplies rows in `dtype` by the stacked weights. When `packs(...)`, they
    may be of any float type, it keeps its own copy and the caller may let go of them."""
    if packs(weights[0].device, dtype):
        return PackedLinear(weights, bias) if scale is None else PackedInt8(weights, scale, bias)
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    if scale is None:
        return lambda x: F.linear(x, weight, bias)
    return lambda x: plain.int8_linear(x, weight, scale, bias)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights on the device will be held in a packed copy."""
    return native.serves(dtype, device)
