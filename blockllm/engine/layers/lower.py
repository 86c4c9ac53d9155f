"""Ops as native programs take them: opcode, registers, sizes, and where the weights lie."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from blockllm.engine.kernels.cpu.program import NativeLayer, table_matrix
from blockllm.engine.kernels.cpu.structs import NativeOp, OpCode
from blockllm.engine.layers.ops import (
    Add,
    Attend,
    Gate,
    Keep,
    Linear,
    LookUp,
    Norm,
    NormHeads,
    Op,
    Write,
)


def lower(ops: Sequence[Op]) -> NativeLayer | None:
    """A layer for native calls, with the low-rank updates of its linears and no other delta; None
    where an op has no native form. It points into the ops' weights and does not keep them."""
    lowered: list[NativeOp] = []
    for op in ops:
        function = _FUNCTIONS.get(type(op))
        made = None if function is None else function(op)
        if made is None:
            return None
        before = lowered[-1] if lowered else None
        if isinstance(op, Add) and before is not None and _is_summand(before, op):
            before.added = op.target  # the sum is formed while the linear is written
        else:
            lowered.append(made)
    return NativeLayer(lowered, any(isinstance(op, Attend) for op in ops))


def _is_summand(before: NativeOp, add: Add) -> bool:
    return bool(before.code == OpCode.LINEAR and before.target == add.source)


def _make(code: OpCode, op: Op, **facts: object) -> NativeOp:
    return NativeOp(code=code, source=op.source, target=op.target, added=-1, **facts)


def _look_up(op: LookUp) -> NativeOp | None:
    matrix = table_matrix(op.embedding.weight)
    return None if matrix is None else _make(OpCode.LOOK_UP, op, matrix=matrix)


def _norm(op: Norm) -> NativeOp:
    weight, eps = op.norm.weight, op.norm.eps
    return _make(OpCode.NORM, op, weight=weight.data_ptr(), eps=eps, width=len(weight))


def _norm_heads(op: NormHeads) -> NativeOp:
    norm, width = op.norm, (op.heads + 2 * op.kv_heads) * op.dim
    weight = norm.weight.data_ptr()
    facts = {"first": norm.first, "heads": norm.count, "kv_heads": op.kv_heads, "dim": op.dim}
    return _make(OpCode.NORM_HEADS, op, weight=weight, eps=norm.eps, width=width, **facts)


def _linear(op: Linear) -> NativeOp | None:
    matrix = op.linear.matrix()
    return None if matrix is None else _make(OpCode.LINEAR, op, matrix=matrix)


def _write(op: Write) -> NativeOp:
    sizes = {"heads": op.heads, "kv_heads": op.kv_heads, "dim": op.dim}
    return _make(OpCode.WRITE, op, width=(op.heads + 2 * op.kv_heads) * op.dim, **sizes)


def _attend(op: Attend) -> NativeOp:
    sizes = {"heads": op.heads, "kv_heads": op.kv_heads, "dim": op.dim, "window": op.window or 0}
    width, scale = (op.heads + 2 * op.kv_heads) * op.dim, op.dim**-0.5
    return _make(OpCode.ATTEND, op, width=width, scale=scale, **sizes)


def _keep(op: Keep) -> NativeOp:
    return _make(OpCode.KEEP, op, width=op.width)


def _gate(op: Gate) -> NativeOp | None:
    code = {"silu": OpCode.GATE, "relu": OpCode.GATE_RELU}.get(op.activation)
    return None if code is None else _make(code, op, width=op.width)


def _add(op: Add) -> NativeOp:
    return _make(OpCode.ADD, op, width=op.width)


_FUNCTIONS: dict[type[Op], Callable[[Any], NativeOp | None]] = {
    LookUp: _look_up,
    Norm: _norm,
    NormHeads: _norm_heads,
    Linear: _linear,
    Write: _write,
    Attend: _attend,
    Keep: _keep,
    Gate: _gate,
    Add: _add,
}
