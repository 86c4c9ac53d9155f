"""The decoder layer of Llama, Mistral, Qwen2 and Qwen3: they differ in data, not in code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F

from blockllm.core import Layer, LayerFunction, LoraTarget
from blockllm.engine.kernels.fused import (
    add_rms_norm,
    rms_norm,
    rms_norm_heads,
    silu_multiply,
)
from blockllm.engine.models.linear import Linear, Loader
from blockllm.engine.models.rope import RopeTable
from blockllm.engine.models.segments import Segments

# q, k, v of all rows [rows, heads + 2 kv_heads, head_dim], not yet rotated → attention output
# [rows, heads, head_dim]; bound to pages and page tables by the executor
Attend = Callable[[torch.Tensor, RopeTable, int | None], torch.Tensor]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
# linears of one input are fused into one; their output's columns are in this order
_FUSED = {
    "self_attn.q_proj": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_proj": ("gate_proj", "up_proj"),
    "mlp.down_proj": ("down_proj",),
}


class DecoderLayer:
    """Attention and gated MLP with pre-norms; weights are shared by every model of the block."""

    def __init__(self, layer: Layer, load: Loader) -> None:
        assert isinstance(layer.function, LayerFunction)
        self.function = layer.function
        self._qkv, self._o, self._gate_up, self._down = (
            _make_linear(first.partition(".")[0], names, layer, load)
            for first, names in _FUSED.items()
        )
        self._input_norm = load.load(layer.tensors["input_layernorm.weight"])
        self._mlp_norm = load.load(layer.tensors["post_attention_layernorm.weight"])
        self._q_norm, self._k_norm = (
            load.load(layer.tensors[f"self_attn.{x}_norm.weight"])
            if layer.function.qk_norm
            else None
            for x in "qk"
        )

    def attach(self, adapters: Sequence[Mapping[str, LoraTarget]], load: Loader) -> None:
        """Take every model's updates; keys are module names such as `self_attn.q_proj`."""
        short = [{n.partition(".")[2]: t for n, t in targets.items()} for targets in adapters]
        for linear in (self._qkv, self._o, self._gate_up, self._down):
            linear.attach(
                [{n: t for n, t in own.items() if n in linear.columns} for own in short], load
            )

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]
        table: RopeTable,
        segments: Segments,
        attend: Attend,
    ) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]; keys and values of the rows land on their pages."""
        attended = self._attention(self._norm(x, self._input_norm), table, segments, attend)
        x, normed = add_rms_norm(x, attended, self._mlp_norm, self.function.norm_eps)
        return x + self._mlp(normed, segments)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, weight, self.function.norm_eps)

    def _attention(
        self, x: torch.Tensor, table: RopeTable, segments: Segments, attend: Attend
    ) -> torch.Tensor:
        function, rows = self.function, len(x)
        heads, kv_heads, size = function.num_heads, function.num_kv_heads, function.head_dim
        fused = self._qkv(x, segments).view(rows, heads + 2 * kv_heads, size)
        if self._q_norm is not None and self._k_norm is not None:
            rms_norm_heads(fused, 0, heads, self._q_norm, function.norm_eps)
            rms_norm_heads(fused, heads, kv_heads, self._k_norm, function.norm_eps)
        out = attend(fused, table, function.window)  # [rows, heads, head_dim]
        return self._o(out.reshape(rows, heads * size), segments)

    def _mlp(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        gate_up = self._gate_up(x, segments)  # [rows, 2 * intermediate]
        if self.function.activation == "silu":
            return self._down(silu_multiply(gate_up), segments)
        gate, up = gate_up.chunk(2, dim=-1)
        return self._down(ACTIVATIONS[self.function.activation](gate) * up, segments)


def _make_linear(module: str, names: tuple[str, ...], layer: Layer, load: Loader) -> Linear:
    prefix = f"{module}."
    tensors = {
        f"{name}.{kind}": layer.tensors[f"{prefix}{name}.{kind}"]
        for name in names
        for kind in ("weight", "bias", "scale")
        if f"{prefix}{name}.{kind}" in layer.tensors
    }
    return Linear(names, tensors, load)
