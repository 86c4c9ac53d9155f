"""Virtual tokens as PEFT saves them: prefix tuning and cartridges, prompt tuning, p-tuning and CPT.

prompt_embeddings   prefix: [tokens, layers · 2 · kv_heads · head_dim]    keys, values of layer 0, …
                    prompt: [tokens, hidden]

What computed them in training (a projection, an encoder) is applied before saving. Where the
vocabulary was resized, embedding and head are saved beside them (base_model.lm_head.weight, …).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from blockllm.core import DTYPE_BYTES, EmbedFunction, LayerFunction
from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import AdapterPlan, Addition, Layers, check_shape
from blockllm.zoo.adapters.saved import read_saved
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.header import Entry
from blockllm.zoo.settings_reader import SettingsReader

_NAME = "prompt_embeddings"
_MODEL = "base_model."
_SIZES = {
    "num_attention_heads", "num_layers", "num_transformer_submodules", "num_virtual_tokens",
    "token_dim",
}  # fmt: skip
_TRAINING = {
    "cpt_mask", "cpt_token_ids", "cpt_tokens_type_mask", "encoder_dropout", "encoder_hidden_size",
    "encoder_num_layers", "encoder_reparameterization_type", "init_weights", "num_frozen_tokens",
    "opt_loss_decay_factor", "opt_projection_epsilon", "opt_projection_format_epsilon",
    "opt_weighted_loss_type", "prefix_projection", "prompt_tuning_init", "prompt_tuning_init_text",
    "tokenizer_kwargs", "tokenizer_name_or_path",
}  # fmt: skip


class Columns(NamedTuple):
    """Neighbouring columns of a matrix, in another shape."""

    source: Source
    first: int
    shape: tuple[int, ...]

    @property
    def entry(self) -> Entry:
        """As if it lay in a file at offset 0."""
        rows, width = self.source.entry.shape[0], self._width
        dtype = self.source.entry.dtype
        return Entry(dtype, self.shape, 0, rows * width * DTYPE_BYTES[dtype])

    @property
    def where(self) -> str:
        return self.source.where

    @property
    def _width(self) -> int:
        width = 1
        for size in self.shape[1:]:
            width *= size
        return width

    def chunks(self) -> Iterator[memoryview]:
        """The bytes, row by row."""
        dtype, (rows, columns), offset, _ = self.source.entry
        size = DTYPE_BYTES[dtype]
        for row in range(rows):
            start = offset + (row * columns + self.first) * size
            entry = Entry(dtype, (self._width,), start, self._width * size)
            yield from self.source._replace(entry=entry).chunks()


def read_prefix(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's PREFIX_TUNING and CARTRIDGE; raises a CheckpointError."""
    source, tokens, whole = _open(reader, tensors)
    functions = {
        position: layer.function
        for position, layer in enumerate(layers)
        if isinstance(layer.function, LayerFunction)
    }
    _expect(reader, "num_layers", len(functions))
    sizes = {position: f.num_kv_heads * f.head_dim for position, f in functions.items()}
    check_shape(_NAME, source, (tokens, 2 * sum(sizes.values())))
    additions, replaced = read_saved(reader, whole, layers)
    first = 0
    for position, function in functions.items():
        _expect(reader, "num_attention_heads", function.num_kv_heads)
        shape = tokens, function.num_kv_heads, function.head_dim
        parts = {
            "keys": Columns(source, first, shape),
            "values": Columns(source, first + sizes[position], shape),
        }
        additions.append(Addition(position, "self_attn", "prefix", parts, {}))
        first += 2 * sizes[position]
    return AdapterPlan("prefix", additions, replaced)


def read_prompt(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's PROMPT_TUNING, P_TUNING and CPT; raises a CheckpointError."""
    source, tokens, whole = _open(reader, tensors)
    function = layers[0].function
    assert isinstance(function, EmbedFunction)
    check_shape(_NAME, source, (tokens, function.hidden_size))
    additions, replaced = read_saved(reader, whole, layers)
    prompt = Addition(0, "embed", "prompt", {"rows": source}, {})
    return AdapterPlan("prompt", [*additions, prompt], replaced)


def _open(
    reader: SettingsReader, tensors: dict[str, Source]
) -> tuple[Source, int, dict[str, Source]]:
    """The virtual tokens, how many they are, and tensors of the base."""
    check_options(reader, _SIZES | _TRAINING)
    _expect(reader, "num_transformer_submodules", 1)
    whole = {
        name.removeprefix(_MODEL): source
        for name, source in tensors.items()
        if name.startswith(_MODEL)
    }
    if _NAME not in tensors or len(whole) + 1 < len(tensors):
        found = ", ".join(sorted(tensors)[:3])[:200] or "none"
        raise AdapterMismatch(f"expected the tensor {_NAME}, and others of the base, got {found}")
    return tensors[_NAME], reader.integer("num_virtual_tokens"), whole


def _expect(reader: SettingsReader, name: str, value: int) -> None:
    found = reader.integer(name, value)
    if found != value:
        raise AdapterMismatch(f"{reader.where}: {name} is {found}, the base needs {value}")
