"""Linears shared by all models of a block, plus the low-rank updates of those that bring one.

All rows of a hop go through the base weight together; each segment then adds its own update
(S-LoRA, arXiv 2311.03285, section 5: computation of base and adapters is separated).
Linears that read the same input (q, k, v; gate, up) are fused into one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from blockllm.core import Tensor
from blockllm.engine.kernels.adapters import AddUpdates, PackedAdapters, make_adapters
from blockllm.engine.kernels.coded import make_differences
from blockllm.engine.kernels.cpu.packed import PackedInt8, PackedLinear
from blockllm.engine.kernels.cpu.structs import Matrix
from blockllm.engine.layers.changes import Affine, BaseLinear, Targets, combine
from blockllm.engine.layers.rows import OwnOutputs
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import Loader


class SharedLinear:
    """y = x Wᵀ + b for all rows, plus each segment's update. W may be several, stacked; it is
    int8 where a `scale` stands beside it."""

    def __init__(self, names: Sequence[str], tensors: dict[str, Tensor], load: Loader) -> None:
        weights = [tensors[f"{name}.weight"] for name in names]
        biases = [tensors.get(f"{name}.bias") for name in names]
        scales = [tensors.get(f"{name}.scale") for name in names]
        self._matmul = load.matmul(weights, biases, scales)
        parts = zip(weights, biases, scales, strict=True)
        self._base = dict(zip(names, itertools.starmap(BaseLinear, parts), strict=True))
        self.columns: dict[str, slice] = {}
        start = 0
        for name, weight in zip(names, weights, strict=True):
            self.columns[name] = slice(start, start + weight.shape[0])
            start += weight.shape[0]
        self._affine: Affine | None = None
        # by the block's adapters; where a part begins in y, and its outputs
        self._outputs: list[list[tuple[int, OwnOutputs]] | None] = []
        self._updates: AddUpdates | None = None
        self._differences: AddUpdates | None = None

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes, in the order of the block's adapters; keys are this linear's
        names."""
        if not any(adapters):
            return
        changes = [
            {name: combine(group, self._base[name], load) for name, group in targets.items()}
            for targets in adapters
        ]
        affine = Affine(changes, self.columns)
        self._affine = affine if affine.changes_inputs or affine.changes_outputs else None
        outputs = (
            [(self.columns[n].start, c.outputs) for n, c in own.items() if c.outputs]
            for own in changes
        )
        self._outputs = [own or None for own in outputs]
        updates = [{n: c.update for n, c in own.items() if c.update} for own in changes]
        differences = [{n: c.differences for n, c in own.items()} for own in changes]
        self._updates = make_adapters(updates, self.columns, load.kernels)
        self._differences = make_differences(differences, self.columns, load.kernels)

    def matrix(self) -> Matrix | None:
        """As native programs take it, with all low-rank updates; None if it is not packed."""
        if not isinstance(self._matmul, PackedLinear | PackedInt8):
            return None
        matrix = self._matmul.matrix()
        if isinstance(self._updates, PackedAdapters):
            matrix.adapters = self._updates.address
        elif self._updates is not None:
            return None
        return matrix

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """x: [rows, in] → [rows, out]"""
        threads = segments.kernels.threads
        if self._affine is None:
            y = self._matmul(x, threads)
        else:
            y = self._matmul(self._affine.before(x, segments), threads)
            self._affine.after(y, segments)
        for start, stop, parts in segments.own(self._outputs):
            for first, own in parts:
                y[start:stop, first + own.outputs] = own.multiply(x[start:stop], threads)
        if segments:
            for add in (self._updates, self._differences):
                if add is not None:
                    add(y, x, segments.tiles, segments.block_rows, segments.kernels)
        return y
