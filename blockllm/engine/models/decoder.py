"""The decoder layer of Llama, Mistral, Qwen2 and Qwen3: they differ in data, not in code."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from blockllm.core import Layer, LayerFunction, keeps_kv
from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.kernels.layer import NO_ROWS, FusedLayers, Matrix, describe_layer
from blockllm.engine.kernels.layer import Layer as NativeLayer
from blockllm.engine.models.changes import Targets
from blockllm.engine.models.halves import AttentionHalf, MlpHalf
from blockllm.engine.models.segments import Kept, Segments
from blockllm.engine.models.sources import Loader


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
        kept: Kept | None = None,  # who goes on behind the attention; None: all
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


# A layer's attention, bound to a hop: of the layer and its number among those that keep KV
Bind = Callable[[DecoderLayer, int], BoundAttention | None]


class DecoderStack:
    """Neighbouring decoder layers of a block: one native call where all can be part of it, else
    kernel by kernel (deltas that fused layers do not know, other devices and dtypes)."""

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        fused: FusedLayers | None = None,
        unfused: frozenset[str] = frozenset(),
    ) -> None:
        """`fused`: the layers, if that is known; `unfused`: see `refresh`."""
        self.layers = layers
        self.num_kv_layers = sum(layer.keeps_kv for layer in layers)
        attending = [layer for layer in layers if layer.keeps_kv]
        self._first = attending[0] if attending else None
        self._last = attending[-1] if attending else None
        functions = [layer.function for layer in attending]
        self._rotations = {(function.rope, function.head_dim) for function in functions}
        self._fused, self._unfused = fused or self._fuse(), unfused

    def refresh(self, unfused: frozenset[str]) -> None:
        """To be called when deltas were attached to the layers; `unfused`: ids of those which are
        more than low-rank updates of linears."""
        self._fused, self._unfused = self._fuse(), unfused

    def _fuse(self) -> FusedLayers | None:
        described = [layer.describe() for layer in self.layers]
        present = [each for each in described if each is not None]
        alike = len(self._rotations) < 2
        return FusedLayers(present) if alike and len(present) == len(described) else None

    def join(self, behind: DecoderStack) -> DecoderStack | None:
        """Both as one native call, for rows that add the same deltas, by the same numbers, in
        both; None where that is not possible."""
        if self._fused is None or behind._fused is None:
            return None
        if len(self._rotations | behind._rotations) > 1:
            return None
        fused = FusedLayers([*self._fused.layers, *behind._fused.layers])
        return DecoderStack([*self.layers, *behind.layers], fused, self._unfused)

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]
        segments: Segments,
        bind: Bind,
        kv_layer: int,  # the first layer's number
        kept: Kept | None = None,  # who goes on behind the last attention; None: all
    ) -> torch.Tensor:
        """[rows, hidden] → [rows or kept, hidden]"""
        if kept is not None and self._last is None:
            x, segments, kept = x[kept.rows], kept.segments, None
        if self._fused is not None and not segments.have(self._unfused):
            attend = None if self._first is None else bind(self._first, kv_layer)
            rows = NO_ROWS if attend is None else attend.describe()
            if rows is not None:
                of_kept = (None, None) if kept is None else (kept.rows, _tiles(kept.segments))
                return self._fused(x, rows, kv_layer, _tiles(segments), *of_kept)
        return self.run_layers(x, segments, bind, kv_layer, kept)

    def run_layers(
        self,
        x: torch.Tensor,
        segments: Segments,
        bind: Bind,
        kv_layer: int,
        kept: Kept | None = None,
    ) -> torch.Tensor:
        """The same, kernel by kernel."""
        for layer in self.layers:
            drops = kept if layer is self._last else None
            x = layer(x, segments, bind(layer, kv_layer), drops)
            kv_layer += layer.keeps_kv
            if drops is not None:
                segments = drops.segments
        return x


def _tiles(segments: Segments) -> torch.Tensor | None:
    return segments.tiles if segments else None
