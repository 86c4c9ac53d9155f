"""Prefixes: keys and values of virtual tokens that a model brings to a layer shared by all."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import PrefixTarget, Target
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import TensorSource


class Prefixes:
    """Those of all models at one decoder layer."""

    def __init__(self) -> None:
        self._own: list[torch.Tensor | None] = []  # by the block's adapters

    def attach(self, groups: Sequence[Sequence[Target]], load: TensorSource) -> None:
        """Take those among every model's targets, in the order of the block's adapters."""
        own = [[t for t in group if isinstance(t, PrefixTarget)] for group in groups]
        self._own = [_join(each[-1], load) if each else None for each in own] if any(own) else []

    def put(self, fused: torch.Tensor, segments: Segments) -> None:
        """Replace keys and values of virtual tokens, in place, before they are rotated and written;
        their rope table must leave them as they are. fused: [rows, heads + 2 kv_heads, head_dim]
        """
        for rows, numbers, own in segments.own_virtual(self._own):
            fused[rows, -own.shape[1] :] = own[numbers]


def _join(target: PrefixTarget, load: TensorSource) -> torch.Tensor:
    """[virtual tokens, 2 kv_heads, head_dim]"""
    return torch.cat([load.load(target.keys), load.load(target.values)], dim=1)
