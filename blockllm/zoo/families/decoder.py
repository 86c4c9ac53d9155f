"""What the dense decoder families share: sizes, and the layers that follow from them."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from blockllm.core import EmbedFunction, HeadFunction, LayerFunction
from blockllm.errors import UnsupportedModel
from blockllm.zoo.families.plan import LayerPlan, ModelPlan
from blockllm.zoo.families.rope import max_context, read_rope
from blockllm.zoo.families.windows import Windows
from blockllm.zoo.settings_reader import SettingsReader

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")

# more layers than any published model has; a larger number is an attack on memory
MAX_LAYERS = 1024
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
}


class Sizes(NamedTuple):
    """The numbers of config.json that decide the shapes of the tensors."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def read_sizes(
    config: SettingsReader, num_kv_heads: int | None = None, head_dim: int | None = None
) -> Sizes:
    """Sizes from config.json; the arguments are what transformers assumes for absent keys."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    if config.is_given("num_key_value_heads") or num_kv_heads is None:
        num_kv_heads = heads
    if config.is_given("head_dim") or head_dim is None:
        head_dim = hidden // heads
    sizes = Sizes(
        vocab_size=config.integer("vocab_size"),
        hidden_size=hidden,
        intermediate_size=config.integer("intermediate_size"),
        num_layers=config.integer("num_hidden_layers", high=MAX_LAYERS),
        num_heads=heads,
        num_kv_heads=config.integer("num_key_value_heads", num_kv_heads),
        head_dim=config.integer("head_dim", head_dim, low=2),
    )
    if heads % sizes.num_kv_heads or sizes.head_dim % 2:
        raise UnsupportedModel(
            "attention heads must be a multiple of key-value heads and the head size even, got "
            f"{heads} heads, {sizes.num_kv_heads} key-value heads of size {sizes.head_dim}"
        )
    return sizes


def plan_decoder(
    config: SettingsReader,
    sizes: Sizes,
    *,
    windows: Windows,
    max_position: int,
    biases: tuple[str, ...] = (),
    qk_norm: bool = False,
    eos_ids: tuple[int, ...] = (),
) -> ModelPlan:
    """Embedding, one layer per entry of `windows` (attention window in tokens), and head.

    `biases` names the linears that have one; `max_position` is the default for an absent key.
    """
    limit = config.integer("max_position_embeddings", max_position)
    first = LayerFunction(
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size,
        num_heads=sizes.num_heads,
        num_kv_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        rope=read_rope(config, limit),
        activation=_activation(config),
        qk_norm=qk_norm,
    )
    shapes = _decoder_shapes(sizes, biases, qk_norm)
    linears = tuple(f"{name}.weight" for name in ATTENTION + MLP)
    layers = tuple(LayerPlan(_windowed(first, window), shapes, linears) for window in windows)
    return ModelPlan(
        layers=(_embed(sizes), *layers, _head(sizes, first.norm_eps)),
        max_context=max_context(config, first.rope, limit),
        tied=config.boolean("tie_word_embeddings", False),
        eos_ids=eos_ids,
    )


def _activation(config: SettingsReader) -> str:
    name = config.text("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModel(f"activation {name[:40]!r} is not supported (known: {known})")
    return _ACTIVATIONS[name]


def _windowed(function: LayerFunction, window: int | None) -> LayerFunction:
    return msgspec.structs.replace(function, window=window)


def _embed(sizes: Sizes) -> LayerPlan:
    function = EmbedFunction(sizes.vocab_size, sizes.hidden_size)
    return LayerPlan(function, {"weight": (sizes.vocab_size, sizes.hidden_size)})


def _head(sizes: Sizes, norm_eps: float) -> LayerPlan:
    function = HeadFunction(sizes.vocab_size, sizes.hidden_size, norm_eps)
    shapes = {
        "norm.weight": (sizes.hidden_size,),
        "weight": (sizes.vocab_size, sizes.hidden_size),
    }
    return LayerPlan(function, shapes, ("weight",))


def _decoder_shapes(
    sizes: Sizes, biases: tuple[str, ...], qk_norm: bool
) -> dict[str, tuple[int, ...]]:
    hidden, inner = sizes.hidden_size, sizes.intermediate_size
    query, key = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
    attention = ((query, hidden), (key, hidden), (key, hidden), (hidden, query))
    mlp = ((inner, hidden), (inner, hidden), (hidden, inner))
    linears = dict(zip(ATTENTION + MLP, attention + mlp, strict=True))
    shapes: dict[str, tuple[int, ...]] = {f"{n}.weight": shape for n, shape in linears.items()}
    shapes |= {f"{name}.bias": linears[name][:1] for name in biases}
    shapes |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if qk_norm:
        shapes |= dict.fromkeys(
            ("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (sizes.head_dim,)
        )
    return shapes
