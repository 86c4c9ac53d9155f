"""Linears shared by all models of a block, plus the low-rank updates of those that bring one.

All rows of a hop go through the base weight together; each segment then adds its own update
(S-LoRA, arXiv 2311.03285, section 5: computation of base and adapters is separated).
Linears that read the same input (q, k, v; gate, up) are fused into one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from blockllm.core import LoraTarget, Tensor
from blockllm.engine.batch import Segment
from blockllm.engine.kernels.matmul import Matmul


class Loader(Protocol):
    """Where layers get their tensors from."""

    def load(self, tensor: Tensor) -> torch.Tensor: ...

    def matmul(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Matmul: ...


class Lora(NamedTuple):
    """y += scale · B A x (+ scale · bias)."""

    b: torch.Tensor  # [rank, out]: B transposed, as addmm reads it fastest
    scale: float
    bias: torch.Tensor | None  # [out]

    def add_to(self, y: torch.Tensor, shrunk: torch.Tensor) -> None:
        """Add the update in place. y: [rows, out], shrunk: [rows, rank]"""
        y.addmm_(shrunk, self.b, alpha=self.scale)
        if self.bias is not None:
            y.add_(self.bias, alpha=self.scale)


def _load_lora(target: LoraTarget, load: Loader) -> Lora:
    bias = load.load(target.bias) if target.bias else None
    return Lora(load.load(target.b).t().contiguous(), target.scale, bias)


class FusedLora(NamedTuple):
    """One model's updates of one fused linear: all A together, then each B on its columns."""

    a: torch.Tensor  # [sum of ranks, in]
    parts: tuple[tuple[slice, slice, Lora], ...]  # (columns of A x, columns of y, update)


class Linear:
    """y = x Wᵀ + b for all rows, plus each segment's update. W may be several, stacked."""

    def __init__(self, names: Sequence[str], tensors: dict[str, Tensor], load: Loader) -> None:
        weights = [tensors[f"{name}.weight"] for name in names]
        biases = [tensors.get(f"{name}.bias") for name in names]
        self._matmul = load.matmul(weights, biases)
        self.columns: dict[str, slice] = {}
        start = 0
        for name, weight in zip(names, weights, strict=True):
            self.columns[name] = slice(start, start + weight.shape[0])
            start += weight.shape[0]
        self._loras: dict[str, FusedLora] = {}  # by delta id

    def add_delta(self, delta: str, targets: dict[str, LoraTarget], load: Loader) -> None:
        """Attach a model's updates; keys of `targets` are this linear's names."""
        parts, start = [], 0
        for name, target in targets.items():
            rank = target.a.shape[0]
            shrunk = slice(start, start + rank)
            parts.append((shrunk, self.columns[name], _load_lora(target, load)))
            start += rank
        a = torch.cat([load.load(target.a) for target in targets.values()])
        self._loras[delta] = FusedLora(a, tuple(parts))

    def __call__(self, x: torch.Tensor, segments: Iterable[Segment]) -> torch.Tensor:
        """x: [rows, in] → [rows, out]"""
        y = self._matmul(x)
        if self._loras:
            for start, stop, delta in segments:
                lora = self._loras.get(delta)
                if lora is not None:
                    shrunk = F.linear(x[start:stop], lora.a)
                    for inner, columns, part in lora.parts:
                        part.add_to(y[start:stop, columns], shrunk[:, inner])
        return y


class Embedding:
    """Token ids → rows, plus each segment's update."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight  # [vocab, hidden]
        self._loras: dict[str, tuple[torch.Tensor, Lora]] = {}  # A: [rank, vocab]

    def add_delta(self, delta: str, target: LoraTarget, load: Loader) -> None:
        """Attach a model's update."""
        self._loras[delta] = (load.load(target.a), _load_lora(target, load))

    def __call__(self, tokens: torch.Tensor, segments: Iterable[Segment]) -> torch.Tensor:
        """tokens: [rows] → [rows, hidden]"""
        y = F.embedding(tokens, self.weight)
        for start, stop, delta in segments:
            if delta in self._loras:
                a, lora = self._loras[delta]
                lora.add_to(y[start:stop], a.t()[tokens[start:stop]])
        return y
