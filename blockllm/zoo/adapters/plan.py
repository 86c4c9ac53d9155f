"""What an adapter does to its base, before anything is stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from blockllm.core import DTYPE_BYTES, Layer
from blockllm.errors import AdapterMismatch
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.families.names import locate_module
from blockllm.zoo.header import Entry
from blockllm.zoo.packs import Readable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from blockllm.zoo.arrays import Weights

Layers = tuple[Layer, ...]
PREFIX = "base_model.model."  # of every tensor's name in PEFT's files

_TYPES = {"F32": "<f4", "I8": "i1", "I32": "<i4"}  # of computed tensors, as numpy calls them


class Computed(NamedTuple):
    """A tensor that follows from tensors of the adapter and from weights of the base."""

    where: str
    dtype: str
    shape: tuple[int, ...]
    compute: Callable[[Weights], NDArray[Any]]

    @property
    def entry(self) -> Entry:
        """As if it lay in a file at offset 0."""
        nbytes = DTYPE_BYTES[self.dtype]
        for size in self.shape:
            nbytes *= size
        return Entry(self.dtype, self.shape, 0, nbytes)

    def read(self, weights: Weights) -> memoryview:
        """The computed bytes; raises a CheckpointError for numbers that make no sense."""
        import numpy as np

        with np.errstate(all="ignore"):  # what is not finite is passed on, as other weights are
            found = self.compute(weights)
        assert found.shape == self.shape, f"{self.where}: {found.shape}, not {self.shape}"
        return np.ascontiguousarray(found, _TYPES[self.dtype]).data.cast("B")


Part = Readable | Computed


class Addition(NamedTuple):
    """A target of one module: its kind and settings as in `core.Target`, tensors to be stored."""

    position: int
    module: str
    kind: str
    parts: Mapping[str, Part]
    settings: Mapping[str, Any]


class AdapterPlan(NamedTuple):
    """Targets, and replacements by (position, tensor name). `kind` is what listings call it;
    `notes` are sentences about the files for the report; `layers` are the base's as the adapter
    arranges them, if it does.
    """

    kind: str
    additions: list[Addition]
    replaced: Mapping[tuple[int, str], Part]
    notes: tuple[str, ...] = ()
    layers: Layers | None = None

    @property
    def nbytes(self) -> int:
        """Bytes to be stored, those that the zoo has already included."""
        added = sum(p.entry.nbytes for a in self.additions for p in a.parts.values())
        return added + sum(part.entry.nbytes for part in self.replaced.values())


class LinearPlace(NamedTuple):
    """A linear module of the base: where it is, and its weight's shape."""

    position: int
    module: str
    weight: str  # name of its weight in the layer
    rows: int
    columns: int


def is_tied(layers: Layers) -> bool:
    """Whether embedding and head are one tensor. An int8 head has parted from the embedding."""
    return layers[0].tensors["weight"].hash == layers[-1].tensors["weight"].hash


def with_shapes(layers: Layers, replaced: Mapping[tuple[int, str], Part]) -> Layers:
    """The layers for checking shapes once `replaced` is in its place."""
    shaped = list(layers)
    for (position, name), source in replaced.items():
        layer = shaped[position]
        tensor = msgspec.structs.replace(layer.tensors[name], shape=source.entry.shape)
        tensors = {**layer.tensors, name: tensor}
        shaped[position] = msgspec.structs.replace(layer, tensors=tensors)
    return tuple(shaped)


def find_linear(name: str, layers: Layers) -> LinearPlace:
    """The linear (or embedding) of a Hugging Face module name; raises AdapterMismatch."""
    place = locate_module(name, len(layers) - 2)
    weight = place and layers[place[0]].tensors.get(place[2])
    if place is None or weight is None or len(weight.shape) != 2:
        raise AdapterMismatch(f"the base has no linear module {name[:200]!r}")
    return LinearPlace(*place, *weight.shape)


def check_shape(name: str, source: Source, shape: tuple[int, ...]) -> None:
    """Raise AdapterMismatch unless a tensor has this shape, UnsupportedModel unless it is of
    floating-point numbers."""
    if source.entry.shape != shape:
        found = list(source.entry.shape)
        raise AdapterMismatch(f"{name[:200]}: expected shape {list(shape)}, got {found}")
    source.check_dtype()


def strip_prefix(tensors: Mapping[str, Source]) -> dict[str, Source]:
    """Tensors of a PEFT file by the base's names; raises AdapterMismatch."""
    for name in tensors:
        if not name.startswith(PREFIX):
            raise AdapterMismatch(f"tensor {name[:200]!r} does not start with {PREFIX}")
    return {name.removeprefix(PREFIX): source for name, source in tensors.items()}
