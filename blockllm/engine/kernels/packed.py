"""Linears of the CPU: weights packed once into panels, multiplied by our own kernels.

A row's result does not depend on the rows beside it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.engine.kernels.native import library

PANEL = 32  # outputs whose weights lie together, as in vectors.h


class PackedLinear:
    """y = x Wᵀ + b in fp32 (`linear.cpp`). W: several weights [out, in] fp32, stacked."""

    def __init__(self, weights: Sequence[torch.Tensor], bias: torch.Tensor | None) -> None:
        self._out, self._in = sum(map(len, weights)), weights[0].shape[1]
        self._bias = bias
        self._weight = torch.zeros(-(-self._out // PANEL), self._in, PANEL)
        row = 0
        for weight in weights:
            weight = weight.contiguous()
            where = (row, len(weight), self._in, torch.get_num_threads())
            library().linear_pack(self._weight.data_ptr(), weight.data_ptr(), *where)
            row += len(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [rows, in], unit inner stride → [rows, out]"""
        rows = len(x)
        y = torch.empty(rows, self._out)
        scratch = torch.empty(rows * self._in if rows > 1 else 0)
        bias = 0 if self._bias is None else self._bias.data_ptr()
        library().linear_run(
            *(y.data_ptr(), self._out, x.data_ptr(), x.stride(0), self._weight.data_ptr()),
            *(bias, scratch.data_ptr(), rows, self._in, self._out, torch.get_num_threads()),
        )
        return y


class PackedInt8:
    """y = x (W · scale)ᵀ + b with int8 W and rows of x rounded to 7 bits (`linear_int8.cpp`)."""

    def __init__(
        self, weights: Sequence[torch.Tensor], scale: torch.Tensor, bias: torch.Tensor | None
    ) -> None:
        self._out, self._in = sum(map(len, weights)), weights[0].shape[1]
        self._scale, self._bias = scale, bias
        quads = -(-self._in // 4)
        self._weight = torch.zeros(-(-self._out // PANEL), quads, PANEL, 4, dtype=torch.int8)
        self._offsets = torch.zeros(self._out, dtype=torch.int32)
        row = 0
        for weight in weights:
            weight = weight.contiguous()
            where = (row, len(weight), self._in, torch.get_num_threads())
            to = (self._weight.data_ptr(), self._offsets.data_ptr())
            library().int8_pack(*to, weight.data_ptr(), *where)
            row += len(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [rows, in], unit inner stride → [rows, out]"""
        rows = len(x)
        y = torch.empty(rows, self._out)
        scratch = torch.empty(rows * (self._weight.shape[1] + 1), dtype=torch.int32)
        bias = 0 if self._bias is None else self._bias.data_ptr()
        library().int8_run(
            *(y.data_ptr(), self._out, x.data_ptr(), x.stride(0), self._weight.data_ptr()),
            *(self._scale.data_ptr(), self._offsets.data_ptr(), bias, scratch.data_ptr()),
            *(rows, self._in, self._out, torch.get_num_threads()),
        )
        return y
