"""What an adapter does to its base, before anything is stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from blockllm.core import Layer
from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.families.names import locate_module
from blockllm.zoo.packs import Readable
from blockllm.zoo.settings_reader import SettingsReader

Layers = tuple[Layer, ...]
PREFIX = "base_model.model."  # of every tensor's name in PEFT's files

# options of every PEFT adapter that say how it was trained or saved, not what it computes
_HARMLESS = {
    "auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version",
    "revision", "task_type",
}  # fmt: skip


class Addition(NamedTuple):
    """A target of one module: its kind and settings as in `core.Target`, tensors to be stored."""

    position: int
    module: str
    kind: str
    parts: Mapping[str, Readable]
    settings: Mapping[str, Any]


class AdapterPlan(NamedTuple):
    """Targets, and replacements by (position, tensor name). `kind` is what listings call it;
    `notes` are sentences about the files for the report.
    """

    kind: str
    additions: list[Addition]
    replaced: dict[tuple[int, str], Readable]
    notes: tuple[str, ...] = ()


class Place(NamedTuple):
    """A linear module of the base: where it is, and its weight's shape."""

    position: int
    module: str
    weight: str  # name of its weight in the layer
    rows: int
    columns: int


def find_linear(name: str, layers: Layers) -> Place:
    """The linear (or embedding) of a Hugging Face module name; raises AdapterMismatch."""
    place = locate_module(name, len(layers) - 2)
    weight = place and layers[place[0]].tensors.get(place[2])
    if place is None or weight is None or len(weight.shape) != 2:
        raise AdapterMismatch(f"the base has no linear module {name[:200]!r}")
    return Place(*place, *weight.shape)


def check_shape(name: str, source: Source, shape: tuple[int, ...]) -> None:
    """Raise AdapterMismatch unless a tensor has this shape, UnsupportedModel unless it is of
    floating-point numbers."""
    if source.entry.shape != shape:
        found = list(source.entry.shape)
        raise AdapterMismatch(f"{name[:200]}: expected shape {list(shape)}, got {found}")
    source.check_dtype()


def check_options(reader: SettingsReader, known: set[str]) -> None:
    """Raise UnsupportedModel for an option that is set and means something unknown."""
    strangers = sorted(set(reader.truthy_keys()) - known - _HARMLESS)
    if strangers:
        raise UnsupportedModel(f"{reader.where}: the option {strangers[0][:80]!r} is not supported")


def strip_prefix(tensors: Mapping[str, Source]) -> dict[str, Source]:
    """Tensors of a PEFT file by the base's names; raises AdapterMismatch."""
    for name in tensors:
        if not name.startswith(PREFIX):
            raise AdapterMismatch(f"tensor {name[:200]!r} does not start with {PREFIX}")
    return {name.removeprefix(PREFIX): source for name, source in tensors.items()}
