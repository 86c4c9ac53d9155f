"""The decoder layer of Llama, Mistral, Qwen2 and Qwen3: they differ in data, not in code."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import Layer, LayerFunction, keeps_kv
from blockllm.engine.models.changes import Targets
from blockllm.engine.models.halves import Attend, AttentionHalf, MlpHalf
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

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes; keys are module names such as `self_attn.q_proj`."""
        for half in (self._attention, self._mlp):
            if half is not None:
                half.attach(adapters, load)

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]
        segments: Segments,
        attend: Attend,
    ) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]; keys and values of the rows land on their pages."""
        if self._attention is None:
            assert self._mlp is not None
            return self._mlp(x, segments)
        attended = self._attention(x, segments, attend)
        return x + attended if self._mlp is None else self._mlp.after(x, attended, segments)
