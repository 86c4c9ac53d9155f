"""Bottleneck adapters: a small MLP of one model behind the attention or MLP that all share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from blockllm.core import BottleneckTarget, Target
from blockllm.engine.kernels.matmul import Matmul
from blockllm.engine.layers.activations import ACTIVATIONS
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import Loader


class _Bottleneck(NamedTuple):
    target: BottleneckTarget
    down: Matmul  # [rows, hidden] → [rows, bottleneck]
    up: Matmul


class Bottlenecks:
    """Those of all models at one place of a layer."""

    def __init__(self) -> None:
        self._own: list[list[_Bottleneck] | None] = []  # by the block's adapters

    def attach(self, groups: Sequence[Sequence[Target]], load: Loader) -> None:
        """Take those among every model's targets, in the order of the block's adapters."""
        own = [
            [_bind(target, load) for target in group if isinstance(target, BottleneckTarget)]
            for group in groups
        ]
        self._own = [each or None for each in own] if any(own) else []

    def add_to(self, y: torch.Tensor, stream: torch.Tensor, segments: Segments) -> None:
        """Add to the output `y` of attention or MLP, in place, before it joins the residual
        stream. Both [rows, hidden]"""
        threads = segments.kernels.threads
        for start, stop, own in segments.own(self._own):
            out = y[start:stop]
            for target, down, up in own:
                z = out + stream[start:stop] if target.reads == "stream" else out
                inner = ACTIVATIONS[target.activation](down(z, threads))
                out.add_(up(inner, threads), alpha=target.scale)


def _bind(target: BottleneckTarget, load: Loader) -> _Bottleneck:
    linears = ((target.down, target.down_bias), (target.up, target.up_bias))
    return _Bottleneck(target, *(load.matmul([w], [bias], [None]) for w, bias in linears))
