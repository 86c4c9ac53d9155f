"""Neighbouring layers that hops go through in one native call where that is possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.kernels.cpu.layer import NO_ROWS, FusedLayers
from blockllm.engine.layers.decoder import DecoderLayer
from blockllm.engine.layers.ends import EmbedLayer, HeadLayer
from blockllm.engine.layers.segments import Kept, Segments

# A layer's attention, bound to a hop: of the layer and its number among those that keep KV
Bind = Callable[[DecoderLayer, int], BoundAttention | None]


class DecoderStack:
    """Neighbouring decoder layers: one native call where all can be part of it, else kernel by
    kernel (deltas that fused layers do not know, other devices and dtypes). The layers before and
    behind them may have been joined to it."""

    def __init__(
        self,
        layers: Sequence[DecoderLayer],
        fused: FusedLayers | None = None,
        unfused: frozenset[str] = frozenset(),
        embed: EmbedLayer | None = None,
        head: HeadLayer | None = None,
    ) -> None:
        """`fused`: all of it, if that is known; `unfused`: see `refresh`."""
        self.layers, self.embed, self.head = layers, embed, head
        self.num_kv_layers = sum(layer.keeps_kv for layer in layers)
        attending = [layer for layer in layers if layer.keeps_kv]
        self._first = attending[0] if attending else None
        self._last = attending[-1] if attending else None
        functions = [layer.function for layer in attending]
        self._rotations = {(function.rope, function.head_dim) for function in functions}
        self._fused, self._unfused = fused or self._fuse(), unfused

    def refresh(self, unfused: frozenset[str]) -> None:
        """To be called when deltas were attached to the layers; `unfused`: ids of deltas that are
        more than low-rank updates of linears."""
        self._fused, self._unfused = self._fuse(), unfused

    def _fuse(self) -> FusedLayers | None:
        described = [layer.describe() for layer in self.layers]
        present = [each for each in described if each is not None]
        alike = len(self._rotations) < 2
        return FusedLayers(present) if alike and len(present) == len(described) else None

    def join(self, behind: DecoderStack) -> DecoderStack | None:
        """Both stacks as one native call, for rows that add the same deltas, by the same numbers,
        in both; None where that is not possible."""
        if self._fused is None or behind._fused is None:
            return None
        if len(self._rotations | behind._rotations) > 1:
            return None
        layers = [*self.layers, *behind.layers]
        fused = self._fused.join(behind._fused)
        return DecoderStack(layers, fused, self._unfused, self.embed, behind.head)

    def begin_with(self, embed: EmbedLayer) -> DecoderStack | None:
        """This stack behind an embedding, for rows that add nothing there; None where that is not
        one native call."""
        entry = embed.describe()
        if self._fused is None or entry is None:
            return None
        fused = FusedLayers(self._fused.layers, entry, self._fused.head)
        return DecoderStack(self.layers, fused, self._unfused, embed, self.head)

    def end_with(self, head: HeadLayer) -> DecoderStack | None:
        """This stack up to a head's logits, for rows that add nothing there; None where that is not
        one native call."""
        described = head.describe()
        if self._fused is None or described is None:
            return None
        fused = FusedLayers(self._fused.layers, self._fused.entry, described)
        return DecoderStack(self.layers, fused, self._unfused, self.embed, head)

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]; token ids [rows] where it begins with an embedding
        segments: Segments,
        bind: Bind,
        kv_layer: int,  # the first layer's number
        kept: Kept | None = None,  # rows that go on behind the last attention; None: all
    ) -> torch.Tensor:
        """[rows, hidden] → [rows or kept, hidden]; logits [rows or kept, vocab] behind a head"""
        if kept is not None and self._last is None:
            x, segments, kept = x[kept.rows], kept.segments, None
        if self._fused is not None and not segments.have(self._unfused):
            attend = None if self._first is None else bind(self._first, kv_layer)
            rows = NO_ROWS if attend is None else attend.describe()
            if rows is not None:
                of_kept = (None, None) if kept is None else (kept.rows, _tiles(kept.segments))
                threads = segments.kernels.threads
                return self._fused(x, rows, kv_layer, _tiles(segments), threads, *of_kept)
        return self.run_layers(x, segments, bind, kv_layer, kept)

    def run_layers(
        self,
        x: torch.Tensor,
        segments: Segments,
        bind: Bind,
        kv_layer: int,
        kept: Kept | None = None,
    ) -> torch.Tensor:
        """As a call of the stack, kernel by kernel."""
        if self.embed is not None:
            x = self.embed(x, segments)
        for layer in self.layers:
            drops = kept if layer is self._last else None
            x = layer(x, segments, bind(layer, kv_layer), drops)
            kv_layer += layer.keeps_kv
            if drops is not None:
                segments = drops.segments
        return x if self.head is None else self.head(x, segments)


def _tiles(segments: Segments) -> torch.Tensor | None:
    return segments.tiles if segments else None
