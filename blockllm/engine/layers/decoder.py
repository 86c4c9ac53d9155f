"""The decoder layer of Llama, Mistral, Qwen2 and Qwen3: they differ in data, not in code."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import Layer, LayerFunction, keeps_kv
from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.kernels.cpu.layer import Layer as NativeLayer
from blockllm.engine.kernels.cpu.layer import Matrix, describe_layer
from blockllm.engine.layers.changes import Targets
from blockllm.engine.layers.halves import AttentionHalf, MlpHalf
from blockllm.engine.layers.segments import Kept, Segments
from blockllm.engine.weights.tensors import Loader


class DecoderLayer:
    """Attention and gated MLP with pre-norms, or one of the two."""

    def __init__(self, layer: Layer, load: Loader) -> None:
        assert isinstance(layer.function, LayerFunction)
        self.function = layer.function
        part, facts = layer.function.part, (layer, layer.function, load)
        self.keeps_kv = keeps_kv(layer.function)
        self._attention = AttentionHalf(*facts) if part != "mlp" else None
        self._mlp = MlpHalf(*facts) if part != "attention" else None
        self._halves = [half for half in (self._attention, self._mlp) if half is not None]

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes; keys are module names such as `self_attn.q_proj`."""
        for half in self._halves:
            half.attach(adapters, load)

    def describe(self) -> NativeLayer | None:
        """As fused layers take it; None where that is not possible. It points into this object."""
        matrices: list[Matrix | None] = []
        norms: list[torch.Tensor | None] = [None] * 3 if self._attention is None else []
        for half in self._halves:
            own, norms_of_half = half.describe()
            matrices += own
            norms += norms_of_half
        present = [matrix for matrix in matrices if matrix is not None]
        if len(present) < len(matrices):
            return None
        missing = [None] if self._mlp is None else []
        return describe_layer(self.function, present, [*norms, *missing])

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]
        segments: Segments,
        attend: BoundAttention | None,  # None without attention
        kept: Kept | None = None,  # rows that go on behind the attention; None: all
    ) -> torch.Tensor:
        """[rows, hidden] → [rows or kept, hidden]; keys and values of all rows land on their
        pages."""
        if self._attention is None:
            assert self._mlp is not None
            return self._mlp(x, segments)
        assert attend is not None, "a layer with attention needs pages"
        attended = self._attention(x, segments, attend, kept)
        if kept is not None:
            x, segments = x[kept.rows], kept.segments
        return x + attended if self._mlp is None else self._mlp.after(x, attended, segments)
