"""Layers as one native call: over many rows `hop.cpp`, for one `row.cpp`. Plain twin:
`layers/plain.py`, which calls the same kernels one by one; the bits are equal."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch

from blockllm.engine.kernels.cpu.native import library
from blockllm.engine.kernels.cpu.structs import (
    KVAccess,
    LayerOps,
    Matrix,
    NativeOp,
    OpCode,
    Program,
    Register,
)

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # of weights
INT8 = 3  # the code of int8 weights
NO_KV = KVAccess()  # for layers without attention


def table_matrix(table: torch.Tensor) -> Matrix | None:
    """A table [rows, hidden] whose rows are looked up; None if programs do not read its type. It
    points into the table and does not keep it."""
    code = CODES.get(table.dtype)
    if code is None or table.device.type != "cpu":
        return None
    return Matrix(table.data_ptr(), code, 0, 0, 0, *table.shape, 0)


class NativeLayer:
    """One layer's ops for native calls. They point into weights and do not keep them."""

    def __init__(self, ops: Sequence[NativeOp], attends: bool) -> None:
        self.attends = attends
        self._ops = (NativeOp * len(ops))(*ops)
        self.listed = LayerOps(ctypes.addressof(self._ops), len(ops))
        linears = [op.matrix for op in ops if op.code == OpCode.LINEAR]
        self.linears = len(linears)
        norms = [op.width for op in ops if op.code == OpCode.NORM]
        self.inputs = max([matrix.inputs for matrix in linears] + norms, default=0)
        self.widths = _widths(ops)


def _widths(ops: Sequence[NativeOp]) -> list[int]:
    """Floats per row that each register needs."""
    widths = [0] * len(Register)
    for op in ops:
        match op.code:
            case OpCode.LOOK_UP | OpCode.LINEAR:
                written = op.matrix.outputs
            case OpCode.ATTEND:
                written = op.heads * op.dim
            case OpCode.GATE | OpCode.GATE_RELU:
                written = op.width // 2
            case OpCode.NORM:
                written = op.width
            case _:  # changes what others wrote
                written = 0
        for register in (op.target, op.added):
            if register >= 0:
                widths[register] = max(widths[register], written)
    return widths


class OutputArrays(NamedTuple):
    """Rows that go on behind the last attention, and their segments."""

    rows: torch.Tensor  # [k] int64, ascending
    tiles: torch.Tensor | None  # [n, 3] int32, as of all rows


class NativeProgram:
    """Neighbouring layers as one call, for rows in fp32 on the CPU."""

    def __init__(self, layers: Sequence[NativeLayer], result: Register) -> None:
        """`result`: what a call returns; hidden states or logits."""
        self._layers = layers
        widths = [max(each) for each in zip(*(layer.widths for layer in layers), strict=True)]
        last = max((i for i, layer in enumerate(layers) if layer.attends), default=-1)
        self._listed = (LayerOps * len(layers))(*(layer.listed for layer in layers))
        self._program = Program(
            *(ctypes.addressof(self._listed), len(layers), last),
            *(sum(layer.linears for layer in layers), result),
            *(max(layer.inputs for layer in layers), (ctypes.c_int64 * len(widths))(*widths)),
        )
        self._address, self._width = ctypes.addressof(self._program), widths[result]
        self._drops_late = result is Register.STREAM  # all rows are in the result until the last op

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden], contiguous; token ids [rows] before a table
        kv: KVAccess,
        kv_layer: int,  # number of the first layer among those that keep KV
        tiles: torch.Tensor | None,  # [n, 3] int32: first row, end, adapter
        threads: int,
        output: OutputArrays | None = None,  # needs a layer with attention
    ) -> torch.Tensor:
        """[rows, hidden] → [rows or output rows, hidden], behind a head [.., vocab]; keys and
        values of all rows land on their pages."""
        left = len(x) if output is None else len(output.rows)
        out = torch.empty(len(x) if self._drops_late else left, self._width)
        kept = (0, -1, 0, 0) if output is None else (*_array(output.rows), *_array(output.tiles))
        library().program_run(
            *(out.data_ptr(), x.data_ptr(), x.shape[0], self._address, ctypes.addressof(kv)),
            *(kv_layer, *_array(tiles), *kept, threads),
        )
        return out[:left]


def _array(values: torch.Tensor | None) -> tuple[int, int]:
    """Where it is and how many there are."""
    return (0, 0) if values is None else (values.data_ptr(), values.shape[0])
