"""LoRA, rsLoRA and DoRA as PEFT saves them.

(module).lora_A.weight   lora_B.weight   lora_B.bias        a low-rank update of a linear
(module).lora_magnitude_vector                              DoRA: lengths of the rows
(module).lora_embedding_A   lora_embedding_B                of the embedding
(module).token_adapter.trainable_tokens_delta               see tokens.py
(module).[base_layer.]weight   bias                         see saved.py
"""

from __future__ import annotations

import re

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.lora_config import LoraConfig, read_lora_config
from blockllm.zoo.adapters.plan import (
    AdapterPlan,
    Addition,
    Layers,
    check_shape,
    find_linear,
    strip_prefix,
    with_shapes,
)
from blockllm.zoo.adapters.replication import replicate
from blockllm.zoo.adapters.saved import read_saved
from blockllm.zoo.adapters.tokens import add_rows, split_rows
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
}
# what VeLoRA and MonteCLoRA train with; they answer as plain LoRA
_TRAINING = re.compile(r".+\.lora_(?:velora_embed|monteclora_sampler)(?:\..+)?")


def read_lora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """Check every tensor against the base's layers; raises a CheckpointError."""
    config = read_lora_config(reader)
    arranged = replicate(reader, layers)
    layers = arranged or layers
    modules: dict[str, dict[str, Source]] = {}
    whole: dict[str, Source] = {}
    rows, named = split_rows(strip_prefix(tensors))
    for key, source in named.items():
        if _TRAINING.fullmatch(key):
            continue
        suffix = next((end for end in _PARTS if key.endswith(end)), None)
        if suffix is None:
            whole[key] = source
        elif modules.setdefault(key.removesuffix(suffix), {}).get(_PARTS[suffix]) is not None:
            raise AdapterMismatch(f"tensor {key[:200]!r} is there in two ways")
        else:
            modules[key.removesuffix(suffix)][_PARTS[suffix]] = source
    additions, replaced = read_saved(reader, whole, layers)
    shaped = with_shapes(layers, replaced)
    updates = [_update(config, name, parts, shaped) for name, parts in sorted(modules.items())]
    additions += add_rows(reader, rows, layers, shaped)
    kind = "dora" if config.is_dora else "lora"
    return AdapterPlan(kind, [*updates, *additions], replaced, layers=arranged)


def _update(config: LoraConfig, name: str, parts: dict[str, Source], layers: Layers) -> Addition:
    place = find_linear(name, layers)
    of_embedding = place.position == 0
    if of_embedding and config.is_dora:
        raise UnsupportedModel(f"{name}: DoRA of an embedding is not supported")
    expected = {"a", "b"}
    if config.is_dora:
        expected.add("magnitude")
    elif config.has_bias and not of_embedding:
        expected.add("bias")
    if set(parts) != expected:
        raise AdapterMismatch(
            f"{name[:200]}: expected lora {sorted(expected)}, got {sorted(parts)}"
        )
    rank, rows, columns = config.rank_of(name), place.rows, place.columns
    # an embedding is looked up, not multiplied: its rows are what a linear's columns are
    inputs, outputs = (rows, columns) if of_embedding else (columns, rows)
    shapes = {
        "a": (rank, inputs), "b": (outputs, rank), "bias": (outputs,), "magnitude": (outputs,)
    }  # fmt: skip
    for part, source in parts.items():
        check_shape(f"{name}, lora {part}", source, shapes[part])
    kind = "dora" if config.is_dora else "lora"
    return Addition(place.position, place.module, kind, parts, {"scale": config.scale_of(name)})
