"""The decoder layer of Llama, Mistral, Qwen2 and Qwen3: they differ in data, not in code."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F

from blockllm.core import Layer, LayerFunction
from blockllm.engine.batch import Segment
from blockllm.engine.models.linear import Linear, LoadTensor
from blockllm.engine.models.rope import RopeTable, rotate

# q, k, v of all rows → attention output; bound to pages and page tables by the executor
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int | None], torch.Tensor]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}
_LINEARS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


class DecoderLayer:
    """Attention and gated MLP with pre-norms; weights are shared by every model of the block."""

    def __init__(self, layer: Layer, load: LoadTensor) -> None:
        assert isinstance(layer.function, LayerFunction)
        tensors = {name: load(tensor) for name, tensor in layer.tensors.items()}
        self.function = layer.function
        self.linears = {
            name: Linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))
            for name in _LINEARS
        }
        self._input_norm = tensors["input_layernorm.weight"]
        self._mlp_norm = tensors["post_attention_layernorm.weight"]
        self._q_norm = tensors.get("self_attn.q_norm.weight")
        self._k_norm = tensors.get("self_attn.k_norm.weight")
        self._activate = ACTIVATIONS[layer.function.activation]

    def __call__(
        self,
        x: torch.Tensor,  # [rows, hidden]
        table: RopeTable,
        segments: Iterable[Segment],
        attend: Attend,
    ) -> torch.Tensor:
        """[rows, hidden] → [rows, hidden]; keys and values of the rows land on their pages."""
        x = x + self._attention(self._norm(x, self._input_norm), table, segments, attend)
        return x + self._mlp(self._norm(x, self._mlp_norm), segments)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return rms_norm(x, weight, self.function.norm_eps)

    def _attention(
        self, x: torch.Tensor, table: RopeTable, segments: Iterable[Segment], attend: Attend
    ) -> torch.Tensor:
        function, rows = self.function, len(x)
        q, k, v = (
            self.linears[f"self_attn.{name}_proj"](x, segments).view(rows, -1, function.head_dim)
            for name in "qkv"
        )  # [rows, heads or kv_heads, head_dim]
        if self._q_norm is not None and self._k_norm is not None:
            q, k = self._norm(q, self._q_norm), self._norm(k, self._k_norm)
        out = attend(rotate(q, table), rotate(k, table), v, function.window)
        return self.linears["self_attn.o_proj"](out.reshape(rows, -1), segments)

    def _mlp(self, x: torch.Tensor, segments: Iterable[Segment]) -> torch.Tensor:
        gate = self._activate(self.linears["mlp.gate_proj"](x, segments))
        return self.linears["mlp.down_proj"](
            gate * self.linears["mlp.up_proj"](x, segments), segments
        )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root-mean-square norm over the last dimension, computed in fp32."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)
