"""A full checkpoint: config and headers checked against each other, then the weights streamed."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from blockllm.core import Layer
from blockllm.errors import CheckpointError
from blockllm.zoo.checkpoint import Source, WeightFiles, open_model
from blockllm.zoo.digest import layer_digest
from blockllm.zoo.families import ModelPlan, choose_family
from blockllm.zoo.families.names import tensor_name
from blockllm.zoo.foreign import is_there
from blockllm.zoo.int8 import round_linears
from blockllm.zoo.packs import PackWriter, Readable
from blockllm.zoo.quantised import refuse_quantised
from blockllm.zoo.records import Record
from blockllm.zoo.settings_reader import SettingsReader, read_json
from blockllm.zoo.strangers import is_skipped, skipped_note, wrong_tensors
from blockllm.zoo.text.files import GENERATION

_DTYPE_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Checkpoint(NamedTuple):
    """An opened checkpoint. `sources` holds the tensors of each layer by name in the layer; `notes`
    are sentences about what was left out.
    """

    family: str
    plan: ModelPlan
    files: WeightFiles
    sources: tuple[dict[str, Readable], ...]
    dtype: str
    eos_ids: tuple[int, ...]
    notes: tuple[str, ...] = ()

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors as they will be stored; a tied head counts once."""
        return sum({source: source.entry.nbytes for source in self._all()}.values())

    def _all(self) -> list[Readable]:
        return [source for layer in self.sources for source in layer.values()]


def open_checkpoint(folder: Path, as_int8: bool) -> Checkpoint:
    """Read config and headers, no weights. The caller closes `files`.

    With `as_int8` the linears and the head will be read rounded, see int8.py.

    Raises CheckpointError, or one of its kinds, unless every tensor is there in its shape.
    """
    config = SettingsReader(read_json(folder / "config.json"), "config.json")
    family = choose_family(config)
    plan = family.plan(config)
    eos_ids = _eos_ids(folder, config, plan)
    files = open_model(folder)
    try:
        refuse_quantised(config, files.tensors)
        sources, notes = _sort_tensors(plan, files.tensors)
    except BaseException:
        files.close()
        raise
    # what the weights are, whatever config.json calls them
    dtype = _DTYPE_NAMES.get(sources[0]["weight"].entry.dtype, "")
    parts = [
        round_linears(sources, layer.linears if as_int8 else ())
        for layer, sources in zip(plan.layers, sources, strict=True)
    ]
    notes += skipped_note(files.absent, "entries of the index that are in no shard")
    return Checkpoint(family.name, plan, files, tuple(parts), dtype, eos_ids, notes)


def store_checkpoint(checkpoint: Checkpoint, name: str, root: str, writer: PackWriter) -> Record:
    """Write the weights that are new, one pack per layer."""
    layers = []
    for planned, sources in zip(checkpoint.plan.layers, checkpoint.sources, strict=True):
        tensors = writer.add(sources)
        digest = layer_digest(planned.function, tensors)
        layers.append(Layer(digest, planned.function, tensors))
    checkpoint.files.check_unchanged()
    return Record(
        name=name,
        kind="full",
        family=checkpoint.family,
        parent=None,
        root=root,
        dtype=checkpoint.dtype,
        max_context=checkpoint.plan.max_context,
        eos_ids=checkpoint.eos_ids,
        layers=tuple(layers),
        exact=not any("I8" in (t.dtype for t in layer.tensors.values()) for layer in layers),
    )


def _sort_tensors(
    plan: ModelPlan, tensors: dict[str, Source]
) -> tuple[tuple[dict[str, Source], ...], tuple[str, ...]]:
    """The tensors of each layer by name in the layer, and notes about those that are skipped."""
    left = {**tensors, **_tied(plan, tensors)}
    sorted_layers = []
    for position, layer in enumerate(plan.layers):
        sources = {}
        for key, shape in layer.shapes.items():
            name = tensor_name(position, key, len(plan.layers) - 2)
            source = left.pop(name, None)
            if source is None:
                raise wrong_tensors(f"tensor {name!r} is missing", left)
            if source.entry.shape != shape:
                found = list(source.entry.shape)
                raise CheckpointError(f"{name}: expected shape {list(shape)}, got {found}")
            source.check_dtype()
            sources[key] = source
        sorted_layers.append(sources)
    unknown = [name for name in left if not is_skipped(name)]
    if unknown:
        text = f"unknown tensor {min(unknown)[:200]!r} ({len(unknown)} in all)"
        raise wrong_tensors(text, unknown)
    notes = skipped_note(left, "tensors that no next token depends on")
    return tuple(sorted_layers), notes


def _tied(plan: ModelPlan, tensors: dict[str, Source]) -> dict[str, Source]:
    # as in transformers: one stands in for the other, but two different ones stay untied
    if not plan.tied:
        return {}
    last = len(plan.layers) - 1
    embed, head = (tensor_name(position, "weight", last - 1) for position in (0, last))
    if embed in tensors and head not in tensors:
        return {head: tensors[embed]}
    if head in tensors and embed not in tensors:
        return {embed: tensors[head]}
    return {}


def _eos_ids(folder: Path, config: SettingsReader, plan: ModelPlan) -> tuple[int, ...]:
    """End tokens that config.json names; those that transformers assumes when it does not and
    generation_config.json does neither."""
    if config.is_given("eos_token_id"):
        return tuple(config.integers("eos_token_id"))
    path = folder / GENERATION
    named = is_there(path) and "eos_token_id" in SettingsReader(read_json(path), GENERATION)
    return () if named else plan.eos_ids
