"""Neighbouring layers that the rows of a hop go through together."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import Layer, keeps_kv
from blockllm.engine.kernels.cpu.program import NO_KV, NativeLayer, NativeProgram, OutputArrays
from blockllm.engine.layers.build import build_ops
from blockllm.engine.layers.changes import Targets
from blockllm.engine.layers.lower import lower
from blockllm.engine.layers.ops import Keep, Op, Write
from blockllm.engine.layers.plain import Bind, PlainRun, fuse
from blockllm.engine.layers.segments import OutputRows, Segments
from blockllm.engine.weights.tensors import Loader, TableLoader


class BoundLayer:
    """A layer's ops with their weights, as both interpreters take them."""

    def __init__(self, layer: Layer, load: TableLoader) -> None:
        self.function, self.ops = layer.function, build_ops(layer, load)
        self.keeps_kv = keeps_kv(layer.function)
        self.write = next((op for op in self.ops if isinstance(op, Write)), None)
        self.rotation = None if self.write is None else (self.write.rope, self.write.dim)
        self.plain = tuple(fuse(self.ops))
        self.is_changed = False  # by some model's delta
        # also an op that could be native is not where what comes behind it computes otherwise
        self._is_native = load.kernels.built and load.dtype is torch.float32
        self.native = self._lower()  # None: plain only

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes; keys are module names such as `self_attn.q_proj`."""
        for op in self.ops:
            op.attach(adapters, load)
        self.is_changed = True
        self.native = self._lower()

    def _lower(self) -> NativeLayer | None:
        return lower(self.ops) if self._is_native else None


class Section:
    """One native call where all of its layers can be part of it, else kernel by kernel."""

    def __init__(
        self, layers: Sequence[BoundLayer], block: int, unfused: frozenset[str] = frozenset()
    ) -> None:
        """`block`: number of the block whose deltas count; `unfused`: ids of those that are no
        mere low-rank updates of linears."""
        self.layers, self.block, self._unfused = layers, block, unfused
        self.num_kv_layers = sum(layer.keeps_kv for layer in layers)
        attending = [layer for layer in layers if layer.keeps_kv]
        self._first = attending[0].write if attending else None
        self._result = layers[-1].ops[-1].target
        last = attending[-1] if attending else None
        self._ops: list[Op] = [
            op
            for layer in layers
            for op in layer.plain
            if layer is last or not isinstance(op, Keep)
        ]
        native = [layer.native for layer in layers if layer.native is not None]
        self._native: NativeProgram | None = None
        if len(native) == len(layers):
            self._native = NativeProgram(native, self._result)

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]; token ids [rows] where it begins with an embedding
        segments: Segments,
        bind: Bind,
        kv_layer: int,  # the first layer's number among those that keep KV
        output: OutputRows | None = None,  # rows that go on behind the last attention; None: all
    ) -> torch.Tensor:
        """[rows, hidden] → [rows or output rows, hidden]; logits [.., vocab] behind a head. Keys
        and values of all rows land on their pages."""
        if output is not None and self._first is None:
            x, segments, output = x[output.rows], segments.select(output.host), None
        if self._native is None or segments.have(self._unfused):
            return self.run_plain(x, segments, bind, kv_layer, output)
        kv = NO_KV if self._first is None else bind(self._first, kv_layer).access()
        if kv is None:
            return self.run_plain(x, segments, bind, kv_layer, output)
        arrays = None
        if output is not None:
            arrays = OutputArrays(output.rows, _tiles(segments.select(output.host)))
        threads = segments.kernels.threads
        return self._native(x, kv, kv_layer, _tiles(segments), threads, arrays)

    def run_plain(
        self,
        x: torch.Tensor,
        segments: Segments,
        bind: Bind,
        kv_layer: int,
        output: OutputRows | None = None,
    ) -> torch.Tensor:
        """As a call, kernel by kernel."""
        if output is not None and self._first is None:
            x, segments, output = x[output.rows], segments.select(output.host), None
        run = PlainRun(x, segments, bind, kv_layer, output)
        run.run(self._ops)
        return run.values[self._result]


def _tiles(segments: Segments) -> torch.Tensor | None:
    return segments.tiles if segments else None
