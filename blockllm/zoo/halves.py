"""Attention and MLP of a decoder layer as layers of their own, where models share one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

import msgspec

from blockllm.core import Layer, LayerFunction, Rope
from blockllm.zoo.digest import layer_digest

Part = Literal["attention", "mlp"]

_ATTENTION = ("self_attn", "input_layernorm")


def part_of(name: str) -> Part:
    """The half to which a tensor or module of a decoder layer belongs."""
    return "attention" if name.startswith(_ATTENTION) else "mlp"


def find_halves(layers: Iterable[Layer]) -> dict[str, tuple[Layer, Layer]]:
    """The layers to be cut, by digest: those of which another layer has one half but not both."""
    halved = {layer.digest: _halve(layer, f) for layer in layers if (f := _decoder(layer))}
    riders = Counter(half.digest for pair in halved.values() for half in pair)
    return {
        digest: pair for digest, pair in halved.items() if any(riders[h.digest] > 1 for h in pair)
    }


def _decoder(layer: Layer) -> LayerFunction | None:
    return layer.function if isinstance(layer.function, LayerFunction) else None


def _halve(layer: Layer, function: LayerFunction) -> tuple[Layer, Layer]:
    # a half's function says nothing about the other half, so that equal halves are equal
    attention = msgspec.structs.replace(
        function, part="attention", intermediate_size=0, activation="silu"
    )
    mlp = LayerFunction(
        hidden_size=function.hidden_size,
        intermediate_size=function.intermediate_size,
        num_heads=0,
        num_kv_heads=0,
        head_dim=0,
        norm_eps=function.norm_eps,
        rope=Rope(0.0),
        activation=function.activation,
        part="mlp",
    )
    return _part(layer, attention), _part(layer, mlp)


def _part(layer: Layer, function: LayerFunction) -> Layer:
    tensors = {n: t for n, t in layer.tensors.items() if part_of(n) == function.part}
    return Layer(layer_digest(function, tensors), function, tensors)
