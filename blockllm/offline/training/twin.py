"""A differentiable twin of the served layers, for short trainings: plain torch, fp32, whole
sequences at once, no pages. Its logits equal the engine's.

    token ids [batch, tokens] → embedding → decoder layers and bridges → head → logits
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F

from blockllm.core import (
    BridgeFunction,
    EmbedFunction,
    Function,
    LayerFunction,
)
from blockllm.engine.attention.rope import RotaryEmbedding
from blockllm.engine.kernels import plain
from blockllm.engine.layers.activations import ACTIVATIONS
from blockllm.engine.layers.bridge import at_position
from blockllm.engine.weights.loader import TensorLoader
from blockllm.errors import ZooError
from blockllm.zoo import Zoo

Weights = dict[str, torch.Tensor]


class TwinLayer:
    """One layer: its function and its weights in fp32, any of which may require a gradient.

    `head_gate` [batch, heads] and `channel_gate` [batch, intermediate], where set, multiply what
    each attention head and MLP channel of a decoder layer contributes.
    """

    def __init__(self, function: Function, weights: Weights) -> None:
        self.function = function
        self.weights = weights
        self.head_gate: torch.Tensor | None = None
        self.channel_gate: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, tokens] ids or [batch, tokens, size] → [batch, tokens, size]"""
        function = self.function
        if isinstance(function, LayerFunction):
            x = x + self._attention(self._norm(x, "input_layernorm"), function)
            return x + self._mlp(self._norm(x, "post_attention_layernorm"), function)
        if isinstance(function, EmbedFunction):
            return F.embedding(x, self.weights["weight"])
        if isinstance(function, BridgeFunction):
            weight, bias = (
                at_position(self.weights[name], function.position) for name in ("weight", "bias")
            )
            return F.linear(x, weight, bias)
        normed = plain.rms_norm(x, self.weights["norm.weight"], function.norm_eps)
        return F.linear(normed, self.weights["weight"])

    def trainable(self) -> TwinLayer:
        """A copy whose weights require gradients."""
        copies = {n: w.detach().clone().requires_grad_() for n, w in self.weights.items()}
        return TwinLayer(self.function, copies)

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        assert isinstance(self.function, LayerFunction)
        return plain.rms_norm(x, self.weights[f"{name}.weight"], self.function.norm_eps)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _attention(self, x: torch.Tensor, function: LayerFunction) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (
            self._linear(x, f"self_attn.{name}_proj").view(batch, tokens, -1, function.head_dim)
            for name in "qkv"
        )  # [batch, tokens, heads, head_dim]
        if function.qk_norm:
            q = plain.rms_norm(q, self.weights["self_attn.q_norm.weight"], function.norm_eps)
            k = plain.rms_norm(k, self.weights["self_attn.k_norm.weight"], function.norm_eps)
        rotary = RotaryEmbedding(function.rope, function.head_dim, x.device, x.dtype)
        table = rotary.table(torch.arange(tokens), torch.full((tokens,), tokens))
        q, k = (plain.rotate(each, table.cos, table.sin) for each in (q, k))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=_visible(tokens, function.window),
            enable_gqa=True,
        ).transpose(1, 2)  # [batch, tokens, heads, head_dim]
        if self.head_gate is not None:
            out = out * self.head_gate[:, None, :, None]
        return self._linear(out.flatten(2), "self_attn.o_proj")

    def _mlp(self, x: torch.Tensor, function: LayerFunction) -> torch.Tensor:
        gate, up = self._linear(x, "mlp.gate_proj"), self._linear(x, "mlp.up_proj")
        inner = ACTIVATIONS[function.activation](gate) * up  # [batch, tokens, intermediate]
        if self.channel_gate is not None:
            inner = inner * self.channel_gate[:, None]
        return self._linear(inner, "mlp.down_proj")


def _visible(tokens: int, window: int | None) -> torch.Tensor:
    """Which token sees which: itself and those before it, within the window. [tokens, tokens]"""
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return mask if window is None else mask.triu(1 - window)


def load_twins(zoo: Zoo, model: str) -> list[TwinLayer]:
    """A model's layers, the embedding first and the head last. int8 weights are taken as the
    numbers they stand for. Raises UnknownModel; ZooError for a model with deltas.
    """
    if zoo.targets(model):
        raise ZooError(f"{model!r} adds deltas to its layers: name the model that it is based on")
    loader = TensorLoader(zoo, torch.device("cpu"), torch.float32)
    return [
        TwinLayer(layer.function, _floats({n: loader.load(t) for n, t in layer.tensors.items()}))
        for layer in zoo.layers(model)
    ]


def _floats(loaded: Mapping[str, torch.Tensor]) -> Weights:
    weights = {}
    for name, tensor in loaded.items():
        if tensor.dtype is torch.int8:
            scale = loaded[name.removesuffix("weight") + "scale"]
            tensor = tensor.float() * scale[:, None].float()
        if not name.endswith("scale"):
            weights[name] = tensor
    return weights


def run_layers(layers: Iterable[TwinLayer], x: torch.Tensor) -> torch.Tensor:
    """What comes out behind the last of the layers."""
    for layer in layers:
        x = layer(x)
    return x


def hidden_states(layers: Sequence[TwinLayer], ids: torch.Tensor) -> list[torch.Tensor]:
    """What comes out behind each of the layers; a model's last are its logits."""
    outputs = []
    x = ids
    for layer in layers:
        x = layer(x)
        outputs.append(x)
    return outputs


def divergence(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of KL(teacher || student) of the next token, in nats; both are logits."""
    ours, theirs = logits.log_softmax(-1), teacher.log_softmax(-1)
    return (theirs.exp() * (theirs - ours)).sum(-1).mean()
