"""Linears shared by all models of a block, plus the low-rank updates of those that bring one.

All rows of a hop go through the base weight together; each segment then adds its own update
(S-LoRA, arXiv 2311.03285, section 5: computation of base and adapters is separated).
Linears that read the same input (q, k, v; gate, up) are fused into one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F

from blockllm.core import LoraTarget, Tensor
from blockllm.engine.kernels.adapters import AddUpdates, make_adapters
from blockllm.engine.kernels.matmul import Matmul
from blockllm.engine.kernels.triton.pool import Update
from blockllm.engine.models.segments import Segments


class Loader(Protocol):
    """Where layers get their tensors from."""

    def load(self, tensor: Tensor) -> torch.Tensor: ...

    def matmul(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scales: Sequence[Tensor | None],
    ) -> Matmul: ...


class Linear:
    """y = x Wᵀ + b for all rows, plus each segment's update. W may be several, stacked; it is
    int8 where a `scale` stands beside it."""

    def __init__(self, names: Sequence[str], tensors: dict[str, Tensor], load: Loader) -> None:
        weights = [tensors[f"{name}.weight"] for name in names]
        biases = [tensors.get(f"{name}.bias") for name in names]
        scales = [tensors.get(f"{name}.scale") for name in names]
        self._matmul = load.matmul(weights, biases, scales)
        self.columns: dict[str, slice] = {}
        start = 0
        for name, weight in zip(names, weights, strict=True):
            self.columns[name] = slice(start, start + weight.shape[0])
            start += weight.shape[0]
        self._add_updates: AddUpdates | None = None

    def attach(self, adapters: Sequence[Mapping[str, LoraTarget]], load: Loader) -> None:
        """Take every model's updates, in the order of the block's adapters; keys are this linear's
        names."""
        if any(adapters):
            updates = [{n: _update(t, load) for n, t in targets.items()} for targets in adapters]
            self._add_updates = make_adapters(updates, self.columns)

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """x: [rows, in] → [rows, out]"""
        y = self._matmul(x)
        if self._add_updates is not None and segments:
            self._add_updates(y, x, segments.tiles, segments.block_rows)
        return y


def _update(target: LoraTarget, load: Loader) -> Update:
    bias = load.load(target.bias) if target.bias else None
    return Update(load.load(target.a), load.load(target.b).t().contiguous(), target.scale, bias)


class Embedding:
    """Token ids → rows, plus each segment's update."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight  # [vocab, hidden]
        self._updates: list[Update | None] = []  # A: [rank, vocab]; by the block's adapters

    def attach(self, adapters: Sequence[Mapping[str, LoraTarget]], load: Loader) -> None:
        """Take every model's update, in the order of the block's adapters."""
        self._updates = [_update(t["embed"], load) if t else None for t in adapters]

    @property
    def has_deltas(self) -> bool:
        """Whether rows of some model add an update."""
        return any(self._updates)

    def __call__(self, tokens: torch.Tensor, segments: Segments) -> torch.Tensor:
        """tokens: [rows] → [rows, hidden]"""
        y = F.embedding(tokens, self.weight)
        for start, stop, delta in segments:
            update = self._updates[segments.adapters[delta]]
            if update is not None:
                shrunk = update.a.t()[tokens[start:stop]]  # [rows, rank]
                y[start:stop].addmm_(shrunk, update.b, alpha=update.scale)
        return y
