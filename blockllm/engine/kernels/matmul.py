"""y = x Wᵀ + b with W in the layout the device multiplies fastest.

On the CPU in fp32 our own kernels hold a packed copy, of 16-bit weights in 16 bits; elsewhere torch
multiplies by W as it is.
The plain twins are `torch.nn.functional.linear` and `plain.int8_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from blockllm.engine.kernels import plain
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.kernels.cpu import native
from blockllm.engine.kernels.cpu.packed import PackedInt8, PackedLinear


class Matmul(Protocol):
    """[rows, in] → [rows, out]; `threads`: of our own kernels."""

    def __call__(self, x: torch.Tensor, threads: int = ...) -> torch.Tensor: ...


def make_matmul(
    weights: Sequence[torch.Tensor],  # [out, in] each; outputs in this order; in `dtype` or int8
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,  # [out] of all, if the weights are int8
    dtype: torch.dtype,
    kernels: Kernels = ALL_CORES,
) -> Matmul:
    """A function that multiplies rows in `dtype` by the stacked weights. When `packs(...)`, they
    may be of any float type, it keeps its own copy and the caller may let go of them."""
    if packs(weights[0].device, dtype, kernels):
        if scale is None:
            return PackedLinear(weights, bias, kernels.threads)
        return PackedInt8(weights, scale, bias, kernels.threads)
    weight = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    if scale is None:
        return lambda x, threads=0: F.linear(x, weight, bias)
    return lambda x, threads=0: plain.int8_linear(x, weight, scale, bias)


def packs(device: torch.device, dtype: torch.dtype, kernels: Kernels = ALL_CORES) -> bool:
    """Whether weights on the device will be held in a packed copy."""
    return kernels.built and native.serves(dtype, device)
