"""A linear shared by all models of a block, plus the low-rank updates of those that bring one.

All rows of a hop go through the base weight together; each segment then adds its own update
(S-LoRA, arXiv 2311.03285, section 5: computation of base and adapters is separated).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F

from blockllm.core import LoraTarget, Tensor
from blockllm.engine.batch import Segment

LoadTensor = Callable[[Tensor], torch.Tensor]


class Lora(NamedTuple):
    """y += scale · B A x (+ scale · bias)."""

    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    scale: float
    bias: torch.Tensor | None  # [out]

    def add_to(self, y: torch.Tensor, shrunk: torch.Tensor) -> None:
        """Add the update in place. y: [rows, out], shrunk: [rows, rank]"""
        y.addmm_(shrunk, self.b.t(), alpha=self.scale)
        if self.bias is not None:
            y.add_(self.bias, alpha=self.scale)


def load_lora(target: LoraTarget, load: LoadTensor) -> Lora:
    """Bind one adapter target to its tensors."""
    bias = load(target.bias) if target.bias else None
    return Lora(load(target.a), load(target.b), target.scale, bias)


class Linear:
    """y = x Wᵀ + b for all rows, plus each segment's update."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.weight = weight  # [out, in]
        self.bias = bias  # [out]
        self.loras: dict[str, Lora] = {}  # by delta id

    def __call__(self, x: torch.Tensor, segments: Iterable[Segment]) -> torch.Tensor:
        """x: [rows, in] → [rows, out]"""
        y = F.linear(x, self.weight, self.bias)
        if self.loras:
            for start, stop, delta in segments:
                lora = self.loras.get(delta)
                if lora is not None:
                    lora.add_to(y[start:stop], F.linear(x[start:stop], lora.a))
        return y


class Embedding:
    """Token ids → rows, plus each segment's update."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight  # [vocab, hidden]
        self.loras: dict[str, Lora] = {}  # a: [rank, vocab], b: [hidden, rank]

    def __call__(self, tokens: torch.Tensor, segments: Iterable[Segment]) -> torch.Tensor:
        """tokens: [rows] → [rows, hidden]"""
        y = F.embedding(tokens, self.weight)
        for start, stop, delta in segments:
            lora = self.loras.get(delta)
            if lora is not None:
                lora.add_to(y[start:stop], lora.a.t()[tokens[start:stop]])
        return y
