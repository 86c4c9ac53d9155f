"""The decoder layer of Llama, Mistral, Qwen2 and Qwen3: they differ in data, not in code."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import Layer, LayerFunction, keeps_kv
from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.kernels.layer import FusedLayer, Matrix
from blockllm.engine.models.changes import Targets
from blockllm.engine.models.halves import AttentionHalf, MlpHalf
from blockllm.engine.models.linear import Loader
from blockllm.engine.models.segments import Segments


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

        self._fused = self._fuse()
        self._fuses_deltas = True

    def _fuse(self) -> FusedLayer | None:
        """The layer as one native call; None where that is not possible."""
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
        return FusedLayer(self.function, present, [*norms, *missing], kept=self._halves)

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes; keys are module names such as `self_attn.q_proj`."""
        for half in self._halves:
            half.attach(adapters, load)
        self._fused = self._fuse()
        self._fuses_deltas = all(half.fuses_deltas for half in self._halves)

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]
        segments: Segments,
        attend: BoundAttention | None,  # None without attention
    ) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]; keys and values of the rows land on their pages."""
        if self._fused is not None and (self._fuses_deltas or not segments):
            place = None if attend is None else attend.place()
            if attend is None or place is not None:
                return self._fused(x, place, segments.tiles if segments else None)
        return self.run_parts(x, segments, attend)

    def run_parts(
        self, x: torch.Tensor, segments: Segments, attend: BoundAttention | None
    ) -> torch.Tensor:
        """The same, kernel by kernel: for deltas that a fused layer does not know, other devices
        and dtypes, and whoever wants to see the parts."""
        if self._attention is None:
            assert self._mlp is not None
            return self._mlp(x, segments)
        assert attend is not None, "a layer with attention needs pages"
        attended = self._attention(x, segments, attend)
        return x + attended if self._mlp is None else self._mlp.after(x, attended, segments)
