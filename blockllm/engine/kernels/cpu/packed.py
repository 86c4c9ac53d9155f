"""Linears of the CPU: weights packed once into panels, multiplied by our own kernels.

A row's result does not depend on the rows beside it, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from blockllm.engine.kernels.cpu.memory import new_memory
from blockllm.engine.kernels.cpu.native import address, library, panel_width
from blockllm.engine.kernels.cpu.program import CODES, INT8
from blockllm.engine.kernels.cpu.structs import Matrix


class PackedLinear:
    """y = x Wᵀ + b in fp32 (`linear.cpp`). W: several weights [out, in], stacked; those of 16 bits
    stay so in memory, which changes no bit of y."""

    def __init__(
        self, weights: Sequence[torch.Tensor], bias: torch.Tensor | None, threads: int
    ) -> None:
        self._out, self._in = sum(map(len, weights)), weights[0].shape[1]
        self._bias = bias
        self._weight = pack_floats(weights, threads)
        self._threads = threads
        self._code = CODES[self._weight.dtype]

    def matrix(self) -> Matrix:
        """As native programs take it; it points into this object."""
        where = (self._weight.data_ptr(), self._code, 0, 0, address(self._bias))
        return Matrix(*where, self._in, self._out, 0)

    def __call__(self, x: torch.Tensor, threads: int = 0) -> torch.Tensor:
        """x: [rows, in], unit inner stride → [rows, out]; `threads`: 0: as many as packed it"""
        rows = len(x)
        y = torch.empty(rows, self._out)
        scratch = torch.empty(rows * self._in if rows > 1 else 0)
        bias = address(self._bias)
        library().linear_run(
            *(y.data_ptr(), self._out, x.data_ptr(), x.stride(0)),
            *(self._weight.data_ptr(), self._code, bias, scratch.data_ptr()),
            *(rows, self._in, self._out, threads or self._threads),
        )
        return y


class PackedInt8:
    """y = x (W · scale)ᵀ + b with int8 W and rows of x rounded to 7 bits (`linear_int8.cpp`)."""

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        threads: int,
    ) -> None:
        self._out, self._in = sum(map(len, weights)), weights[0].shape[1]
        self._scale, self._bias = scale, bias
        self._weight, self._offsets = pack_int8(weights, threads)
        self._threads = threads

    def matrix(self) -> Matrix:
        """As native programs take it; it points into this object."""
        where = (self._weight.data_ptr(), INT8, self._scale.data_ptr(), self._offsets.data_ptr())
        return Matrix(*where, address(self._bias), self._in, self._out, 0)

    def __call__(self, x: torch.Tensor, threads: int = 0) -> torch.Tensor:
        """x: [rows, in], unit inner stride → [rows, out]; `threads`: 0: as many as packed it"""
        rows = len(x)
        y = torch.empty(rows, self._out)
        scratch = torch.empty(rows * (self._weight.shape[1] + 1), dtype=torch.int32)
        bias = address(self._bias)
        library().int8_run(
            *(y.data_ptr(), self._out, x.data_ptr(), x.stride(0), self._weight.data_ptr()),
            *(self._scale.data_ptr(), self._offsets.data_ptr(), bias, scratch.data_ptr()),
            *(rows, self._in, self._out, threads or self._threads),
        )
        return y


def pack_floats(weights: Sequence[torch.Tensor], threads: int) -> torch.Tensor:
    """Weights [out, in], stacked → [panels, in / group, panel, group]: groups of 4 bytes. Bf16 and
    fp16 stay what they are; fp32 where they are mixed or `in` is odd. Plain twin: `plain.pack`."""
    size, dtypes = weights[0].shape[1], {weight.dtype for weight in weights}
    dtype = torch.float32 if len(dtypes) > 1 or size % 2 else dtypes.pop()
    packed = _new_panels(weights, dtype)
    for row, weight in _stack(packed, weights):
        where = (row, len(weight), size * dtype.itemsize // 4, threads)
        library().linear_pack(packed.data_ptr(), weight.data_ptr(), *where)
    return packed


def pack_int8(weights: Sequence[torch.Tensor], threads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [out, in] int8, stacked → [panels, in / 4, panel, 4], and the offsets [out] of the
    sums. Plain twin: `plain.pack`."""
    size, out = weights[0].shape[1], sum(map(len, weights))
    packed = _new_panels(weights, torch.int8)
    offsets = torch.empty(out, dtype=torch.int32)
    for row, weight in _stack(packed, weights):
        where = (row, len(weight), size, threads)
        to = (packed.data_ptr(), offsets.data_ptr())
        library().int8_pack(*to, weight.data_ptr(), *where)
    return packed, offsets


def _new_panels(weights: Sequence[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """[panels, in / group, panel, group] of which nothing is written"""
    group, width = 4 // dtype.itemsize, panel_width()
    panels = -(-sum(map(len, weights)) // width)
    return new_memory(panels, -(-weights[0].shape[1] // group), width, group, dtype=dtype)


def _stack(
    packed: torch.Tensor,  # [panels, in / group, panel, group]
    weights: Sequence[torch.Tensor],
) -> Iterator[tuple[int, torch.Tensor]]:
    """The weights in the panels' dtype, each with its first output among all. Then what lies behind
    the last output becomes zero; all else is overwritten."""
    row = 0
    for weight in weights:
        yield row, weight.to(packed.dtype).contiguous()
        row += len(weight)
    if rest := row % packed.shape[2]:
        packed[-1, :, rest:] = 0
