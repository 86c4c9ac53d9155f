"""The plain interpreter: ops on torch tensors, kernel by kernel, with every kind of delta."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.kernels.cpu.structs import Register
from blockllm.engine.kernels.fused import silu_multiply
from blockllm.engine.layers.activations import ACTIVATIONS
from blockllm.engine.layers.ops import (
    Add,
    AddNorm,
    Attend,
    Cross,
    Gate,
    Keep,
    Linear,
    LookUp,
    Norm,
    NormHeads,
    Op,
    Write,
)
from blockllm.engine.layers.segments import OutputRows, Segments

# A layer's attention, bound to a hop: of what it writes and its number among those that keep KV
Bind = Callable[[Write, int], BoundAttention]


class PlainRun:
    """The rows of a hop on their way through ops."""

    def __init__(
        self,
        x: torch.Tensor,  # [rows, hidden], or token ids [rows]
        segments: Segments,
        bind: Bind,
        kv_layer: int,  # the first attention's number
        output: OutputRows | None,  # rows that go on behind a `Keep`; None: all
    ) -> None:
        self.values = [x] * len(Register)  # by register
        self.segments, self.output = segments, output
        self._bind, self._kv_layer = bind, kv_layer
        self._attention: BoundAttention | None = None

    def run(self, ops: Iterable[Op]) -> None:
        """Do every op, in order."""
        for op in ops:
            _FUNCTIONS[type(op)](self, op)

    def look_up(self, op: LookUp) -> None:
        self.values[op.target] = op.embedding(self.values[op.source], self.segments)

    def norm(self, op: Norm) -> None:
        self.values[op.target] = op.norm(self.values[op.source], self.segments)

    def norm_heads(self, op: NormHeads) -> None:
        op.norm(_heads(self.values[op.target], op.dim), self.segments)

    def linear(self, op: Linear) -> None:
        self.values[op.target] = op.linear(self.values[op.source], self.segments)

    def cross(self, op: Cross) -> None:
        self.values[op.target] = op.bridge(self.values[op.source], self.segments)

    def write(self, op: Write) -> None:
        fused = _heads(self.values[op.target], op.dim)
        op.prefixes.put(fused, self.segments)
        self._attention = self._bind(op, self._kv_layer)
        self._attention.write(fused)

    def attend(self, op: Attend) -> None:
        assert self._attention is not None, "keys and values are written before they are read"
        out = self._attention.attend(_heads(self.values[op.source], op.dim), op.window)
        self.values[op.target] = out.reshape(len(out), op.heads * op.dim)
        self._kv_layer += 1

    def keep(self, op: Keep) -> None:
        if self.output is not None:
            for register in (op.source, Register.STREAM):
                self.values[register] = self.values[register][self.output.rows]
            self.segments = self.segments.select(self.output.host)

    def gate(self, op: Gate) -> None:
        gate_up = self.values[op.source]
        if op.activation == "silu":
            self.values[op.target] = silu_multiply(gate_up, self.segments.kernels)
        else:
            gate, up = gate_up.chunk(2, dim=-1)
            self.values[op.target] = ACTIVATIONS[op.activation](gate) * up

    def add(self, op: Add) -> None:
        x, y = self.values[op.target], self.values[op.source]
        op.bottlenecks.add_to(y, x, self.segments)
        self.values[op.target] = x + y

    def add_norm(self, op: AddNorm) -> None:
        add, norm = op.add, op.norm
        x, y = self.values[add.target], self.values[add.source]
        add.bottlenecks.add_to(y, x, self.segments)
        values = norm.norm.add(x, y, self.segments)
        self.values[add.target], self.values[norm.target] = values


_FUNCTIONS: dict[type[Op], Callable[[PlainRun, Any], None]] = {
    LookUp: PlainRun.look_up,
    Norm: PlainRun.norm,
    NormHeads: PlainRun.norm_heads,
    Linear: PlainRun.linear,
    Cross: PlainRun.cross,
    Write: PlainRun.write,
    Attend: PlainRun.attend,
    Keep: PlainRun.keep,
    Gate: PlainRun.gate,
    Add: PlainRun.add,
    AddNorm: PlainRun.add_norm,
}


def _heads(fused: torch.Tensor, dim: int) -> torch.Tensor:
    """[rows, heads · dim] → [rows, heads, dim], the same memory"""
    return fused.view(len(fused), -1, dim)


def fuse(ops: Sequence[Op]) -> Iterator[Op]:
    """The same, with a sum and the norm of it as one op."""
    previous: Op | None = None
    for op in ops:
        if isinstance(previous, Add) and isinstance(op, Norm) and op.source == previous.target:
            yield AddNorm(previous.source, op.target, previous, op)
            previous = None
            continue
        if previous is not None:
            yield previous
        previous = op
    if previous is not None:
        yield previous
