"""Norms shared by all models of a block, and the weights of those that bring their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import NormTarget, Target
from blockllm.engine.kernels.fused import add_rms_norm, rms_norm, rms_norm_heads
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import TensorSource
from blockllm.errors import UnsupportedModel


def own_weights(
    targets: Sequence[tuple[Target, ...]], load: TensorSource
) -> list[torch.Tensor | None]:
    """The weight that each model brings for one norm; none for most."""
    if not any(targets):
        return []
    return [_own_weight(group, load) if group else None for group in targets]


def _own_weight(group: tuple[Target, ...], load: TensorSource) -> torch.Tensor:
    (target, *others) = group
    if others or not isinstance(target, NormTarget):
        raise UnsupportedModel("a norm takes no delta but one other weight")
    return load.load(target.weight)


class _Replaceable:
    """The weight that all models of a block share, and those that some bring instead."""

    def __init__(self, weight: torch.Tensor, eps: float) -> None:
        self.weight, self.eps = weight, eps
        self._own: list[torch.Tensor | None] = []

    def attach(self, targets: Sequence[tuple[Target, ...]], load: TensorSource) -> None:
        """Take every model's weight, in the order of the block's adapters."""
        self._own = own_weights(targets, load)


class SharedNorm(_Replaceable):
    """Root-mean-square norm of rows."""

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]"""
        return self._replace(rms_norm(x, self.weight, self.eps, segments.kernels), x, segments)

    def add(
        self, x: torch.Tensor, added: torch.Tensor, segments: Segments
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x + added, and its norm. [rows, hidden] → 2 of [rows, hidden]"""
        x, normed = add_rms_norm(x, added, self.weight, self.eps, segments.kernels)
        return x, self._replace(normed, x, segments)

    def _replace(self, normed: torch.Tensor, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        for start, stop, weight in segments.own(self._own):
            normed[start:stop] = rms_norm(x[start:stop], weight, self.eps, segments.kernels)
        return normed


class SharedHeadNorm(_Replaceable):
    """Root-mean-square norm of each attention head, in place."""

    def __init__(self, weight: torch.Tensor, eps: float, first: int, count: int) -> None:
        """Of `count` heads from `first` on."""
        super().__init__(weight, eps)
        self.first, self.count = first, count

    def __call__(self, fused: torch.Tensor, segments: Segments) -> None:
        """fused: [rows, all heads, head_dim], contiguous"""
        heads = slice(self.first, self.first + self.count)
        kept = [
            (fused[start:stop], fused[start:stop, heads].clone(), weight)
            for start, stop, weight in segments.own(self._own)
        ]
        rms_norm_heads(fused, self.first, self.count, self.weight, self.eps, segments.kernels)
        for rows, before, weight in kept:
            rows[:, heads] = before
            rms_norm_heads(rows, self.first, self.count, weight, self.eps, segments.kernels)
