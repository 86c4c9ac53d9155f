"""The first and the last layer of a model: token ids → hidden states → logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import HeadFunction, Layer
from blockllm.engine.kernels.cpu.layer import Entry, Head, describe_entry, describe_head
from blockllm.engine.layers.changes import Targets
from blockllm.engine.layers.embedding import Embedding
from blockllm.engine.layers.linear import Linear
from blockllm.engine.layers.norm import Norm
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import Loader, TableLoader


class EmbedLayer:
    """Token ids → hidden states."""

    def __init__(self, layer: Layer, load: TableLoader) -> None:
        self._embedding = Embedding(load.table(layer.tensors["weight"]), load.dtype)
        self.is_changed = False  # by some model's delta

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes."""
        self._embedding.attach(adapters, load)
        self.is_changed = True

    def describe(self) -> Entry | None:
        """As fused layers take it, without deltas; None where that is not possible. It points into
        this object."""
        return describe_entry(self._embedding.weight)

    def __call__(self, tokens: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows] → [rows, hidden]"""
        return self._embedding(tokens, segments)


class HeadLayer:
    """Final norm and projection → logits, for rows whose next token is wanted."""

    def __init__(self, layer: Layer, load: Loader) -> None:
        assert isinstance(layer.function, HeadFunction)
        self._eps = layer.function.norm_eps
        self._norm = Norm(load.load(layer.tensors["norm.weight"]), self._eps)
        kinds = ("weight", "bias", "scale")
        tensors = {f"head.{n}": t for n, t in layer.tensors.items() if n in kinds}
        self._projection = Linear(("head",), tensors, load)
        self.is_changed = False  # by some model's delta

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes."""
        self._norm.attach([targets.get("norm", ()) for targets in adapters], load)
        own = [{n: t for n, t in targets.items() if n == "head"} for targets in adapters]
        self._projection.attach(own, load)
        self.is_changed = True

    def describe(self) -> Head | None:
        """As fused layers take it, without deltas; None where that is not possible. It points into
        this object."""
        projection = self._projection.describe()
        if projection is None:
            return None
        return describe_head(self._norm.weight, self._eps, projection)

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows, hidden] → logits [rows, vocab]"""
        return self._projection(self._norm(x, segments), segments)
