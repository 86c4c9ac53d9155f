"""A layer's function and tensors become ops, once. What families differ in is decided here."""

from __future__ import annotations

from collections.abc import Iterator

from blockllm.core import BridgeFunction, EmbedFunction, HeadFunction, Layer, LayerFunction
from blockllm.engine.kernels.cpu.structs import Register
from blockllm.engine.layers.bridge import Bridge
from blockllm.engine.layers.embedding import Embedding
from blockllm.engine.layers.linear import SharedLinear
from blockllm.engine.layers.norm import SharedHeadNorm, SharedNorm
from blockllm.engine.layers.ops import (
    Add,
    Attend,
    Cross,
    Gate,
    Keep,
    Linear,
    LookUp,
    Norm,
    NormHeads,
    Op,
    Write,
)
from blockllm.engine.weights.tensors import Loader, TableLoader

_STREAM, _NORMED, _WIDE = Register.STREAM, Register.NORMED, Register.WIDE
_INNER, _OUTPUT = Register.INNER, Register.OUTPUT


def build_ops(layer: Layer, load: TableLoader) -> tuple[Op, ...]:
    """The layer's ops, with their weights."""
    function = layer.function
    match function:
        case EmbedFunction():
            embedding = Embedding(load.table(layer.tensors["weight"]), load.dtype)
            return (LookUp(Register.TOKENS, _STREAM, embedding),)
        case HeadFunction():
            return tuple(_head(layer, function, load))
        case BridgeFunction():
            return (Cross(_STREAM, _STREAM, Bridge(layer, function, load)),)
        case LayerFunction(part="attention"):
            return tuple(_attention(layer, function, load))
        case LayerFunction(part="mlp"):
            return tuple(_mlp(layer, function, load))
        case LayerFunction():
            return (*_attention(layer, function, load), *_mlp(layer, function, load))


def _attention(layer: Layer, function: LayerFunction, load: Loader) -> Iterator[Op]:
    """Norm, attention and output projection, which join the stream."""
    heads, kv_heads, dim = function.num_heads, function.num_kv_heads, function.head_dim
    sizes = (heads, kv_heads, dim)
    qkv = _linear("self_attn.", ("q_proj", "k_proj", "v_proj"), layer, load)
    yield Norm(_STREAM, _NORMED, *_norm("input_layernorm", layer, function.norm_eps, load))
    yield Linear(_NORMED, _WIDE, "self_attn.", qkv)
    if function.qk_norm:
        for name, first, count in (("q_norm", 0, heads), ("k_norm", heads, kv_heads)):
            weight = load.load(layer.tensors[f"self_attn.{name}.weight"])
            norm = SharedHeadNorm(weight, function.norm_eps, first, count)
            yield NormHeads(_WIDE, _WIDE, f"self_attn.{name}", norm, *sizes)
    yield Write(_WIDE, _WIDE, function.rope, *sizes)
    yield Attend(_WIDE, _INNER, *sizes, function.window)
    yield Keep(_INNER, _INNER, heads * dim)
    yield Linear(_INNER, _OUTPUT, "self_attn.", _linear("self_attn.", ("o_proj",), layer, load))
    yield Add(_OUTPUT, _STREAM, "self_attn", function.hidden_size)


def _mlp(layer: Layer, function: LayerFunction, load: Loader) -> Iterator[Op]:
    """Norm and gated MLP, which join the stream."""
    gate_up = _linear("mlp.", ("gate_proj", "up_proj"), layer, load)
    name = "post_attention_layernorm"
    yield Norm(_STREAM, _NORMED, *_norm(name, layer, function.norm_eps, load))
    yield Linear(_NORMED, _WIDE, "mlp.", gate_up)
    yield Gate(_WIDE, _INNER, function.activation, 2 * function.intermediate_size)
    yield Linear(_INNER, _OUTPUT, "mlp.", _linear("mlp.", ("down_proj",), layer, load))
    yield Add(_OUTPUT, _STREAM, "mlp", function.hidden_size)


def _head(layer: Layer, function: HeadFunction, load: Loader) -> Iterator[Op]:
    """Final norm and projection."""
    kinds = ("weight", "bias", "scale")
    tensors = {f"head.{n}": t for n, t in layer.tensors.items() if n in kinds}
    yield Norm(_STREAM, _NORMED, *_norm("norm", layer, function.norm_eps, load))
    yield Linear(_NORMED, Register.LOGITS, "", SharedLinear(("head",), tensors, load))


def _norm(name: str, layer: Layer, eps: float, load: Loader) -> tuple[str, SharedNorm]:
    return name, SharedNorm(load.load(layer.tensors[f"{name}.weight"]), eps)


def _linear(module: str, names: tuple[str, ...], layer: Layer, load: Loader) -> SharedLinear:
    """Linears of one input are one; their output's columns are in this order."""
    tensors = {
        f"{name}.{kind}": layer.tensors[f"{module}{name}.{kind}"]
        for name in names
        for kind in ("weight", "bias", "scale")
        if f"{module}{name}.{kind}" in layer.tensors
    }
    return SharedLinear(names, tensors, load)
