"""Bottleneck adapters: a small MLP of one model behind the attention or MLP that all share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from blockllm.core import BottleneckTarget
from blockllm.engine.layers.activations import ACTIVATIONS
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import TensorSource


class _Bottleneck(NamedTuple):
    target: BottleneckTarget
    down: torch.Tensor  # [bottleneck, hidden]
    up: torch.Tensor  # [hidden, bottleneck]
    down_bias: torch.Tensor | None
    up_bias: torch.Tensor | None


class Bottlenecks:
    """Those of all models at one place of a layer."""

    def __init__(self, targets: Sequence[Sequence[BottleneckTarget]], load: TensorSource) -> None:
        """`targets` by model, in the order of the block's adapters."""
        self._own = [[_bind(target, load) for target in own] or None for own in targets]

    def add_to(self, y: torch.Tensor, stream: torch.Tensor, segments: Segments) -> None:
        """Add to the output `y` of attention or MLP, in place, before it joins the residual
        stream. Both [rows, hidden]"""
        for start, stop, own in segments.own(self._own):
            out = y[start:stop]
            for target, down, up, down_bias, up_bias in own:
                z = out + stream[start:stop] if target.reads == "stream" else out
                inner = ACTIVATIONS[target.activation](F.linear(z, down, down_bias))
                out.add_(F.linear(inner, up, up_bias), alpha=target.scale)


def _bind(target: BottleneckTarget, load: TensorSource) -> _Bottleneck:
    biases = (load.load(b) if b else None for b in (target.down_bias, target.up_bias))
    return _Bottleneck(target, load.load(target.down), load.load(target.up), *biases)
