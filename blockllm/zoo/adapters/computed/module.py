"""One linear that an adapter changes, and the two ways in which that is kept.

low rank   A [rank, in] and B [out, rank] beside the base's weight, where they are smaller than it
merged     the changed weight, fp32, instead of the base's: the layer becomes another one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockllm.errors import AdapterMismatch, CheckpointError, UnsupportedModel
from blockllm.zoo.adapters.plan import (
    AdapterPlan,
    Addition,
    Computed,
    Layers,
    Part,
    Place,
    check_shape,
    find_linear,
    with_shapes,
)
from blockllm.zoo.adapters.saved import read_saved
from blockllm.zoo.arrays import Floats, Integers, Weights, check_integers, read_floats
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.int8 import Int8Part, scale_name
from blockllm.zoo.rounding import make_scales, make_weight
from blockllm.zoo.settings_reader import SettingsReader

# options that say how an adapter was trained, or name what its tensors name as well
COMMON = frozenset(
    {
        "bias", "exclude_modules", "fan_in_fan_out", "init_weights", "layers_pattern",
        "layers_to_transform", "modules_to_save", "target_modules",
    }
)  # fmt: skip

Factor = Source | Callable[[Weights], Floats]
_Place = tuple[int, str]  # position, tensor's name
_Rounding = Callable[[memoryview, str, int], memoryview]
Shapes = Mapping[str, tuple[int, ...]]


class Change(NamedTuple):
    """What becomes of one linear."""

    additions: tuple[Addition, ...] = ()
    replaced: Mapping[_Place, Part] = {}

    def beside(self, other: Change) -> Change:
        """Both of them."""
        both = (*self.additions, *other.additions)
        return Change(both, {**self.replaced, **other.replaced})


class Module(NamedTuple):
    """A linear of the base and what the adapter brings for it."""

    name: str
    place: Place
    layers: Layers
    parts: Mapping[str, Source]

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.place.rows, self.place.columns

    @property
    def weight(self) -> tuple[int, str]:
        """The place of its weight among the base's tensors."""
        return self.place.position, self.place.weight

    @property
    def bias(self) -> tuple[int, str] | None:
        """The place of its bias, if the base has one there."""
        name = f"{self.place.weight.removesuffix('weight')}bias"
        has_one = name in self.layers[self.place.position].tensors
        return (self.place.position, name) if has_one else None

    def read(self, part: str) -> Floats:
        """One of the adapter's tensors."""
        return read_floats(self.parts[part])

    def size_of(self, part: str) -> int:
        """The first size of one of the adapter's tensors; raises AdapterMismatch without one."""
        shape = self.parts[part].entry.shape if part in self.parts else ()
        if not shape:
            raise AdapterMismatch(f"{self.name[:200]}: the adapter has no {part} of a size")
        return shape[0]

    def check(self, shapes: Shapes) -> None:
        """Raise AdapterMismatch unless the adapter brings these tensors and no others."""
        if set(self.parts) != set(shapes):
            expected, found = sorted(shapes), sorted(self.parts)
            raise AdapterMismatch(f"{self.name[:200]}: expected {expected}, got {found}")
        for part, shape in shapes.items():
            self.check_part(part, shape)

    def check_part(self, part: str, shape: tuple[int, ...]) -> None:
        """Raise AdapterMismatch unless the adapter brings this tensor, whatever else it brings."""
        if part not in self.parts:
            raise AdapterMismatch(f"{self.name[:200]}: the adapter has no {part}")
        check_shape(f"{self.name}, {part}", self.parts[part], shape)

    def check_places(self, part: str, shape: tuple[int, ...]) -> None:
        """Raise a CheckpointError unless the adapter brings this tensor of integers."""
        source = self.parts.get(part)
        if source is None or source.entry.shape != shape:
            found = list(source.entry.shape) if source else "none"
            raise AdapterMismatch(f"{self.name[:200]}: expected {part} {list(shape)}, got {found}")
        check_integers(source)

    def add(self, kind: str, parts: Mapping[str, Part], **settings: float | str) -> Change:
        """A target of this linear."""
        place = self.place
        return Change((Addition(place.position, place.module, kind, parts, settings),))

    def low_rank(
        self,
        rank: int,
        a: Factor,
        b: Factor,
        scale: float = 1.0,
        difference: Callable[[Weights], Floats] | None = None,
    ) -> Change:
        """y += scale · B A x, by factors where they are smaller than the weight, else merged.
        `difference` is a shorter way to B A."""
        out, inputs = self.sizes
        if rank * (out + inputs) < out * inputs:
            parts = {"a": self._part(a, (rank, inputs)), "b": self._part(b, (out, rank))}
            return self.add("lora", parts, scale=scale)

        def merge(weights: Weights) -> Floats:
            if difference is not None:
                return weights[self.weight] + np.float32(scale) * difference(weights)
            return weights[self.weight] + np.float32(scale) * (
                _floats(b, weights) @ _floats(a, weights)
            )

        return self.merge(merge)

    def merge(
        self,
        compute: Callable[[Weights], Floats],
        bias: Callable[[Weights, _Place], Floats] | None = None,
    ) -> Change:
        """Another weight [out, in] instead of the base's, in int8 if that is; with `bias` another
        bias [out] too, if the base has one, of which it is told the place."""
        place = self.bias
        if bias is None or place is None:
            return Change((), self._merge(compute))
        changed = self._part(lambda weights: bias(weights, place), self.sizes[:1])
        return Change((), {**self._merge(compute), place: changed})

    def _merge(self, compute: Callable[[Weights], Floats]) -> dict[_Place, Part]:
        if self.layers[self.place.position].tensors[self.place.weight].dtype != "I8":
            return {self.weight: self._part(compute, self.sizes)}
        out, inputs = self.sizes
        (position, name), where = self.weight, self.name

        def codes(weights: Weights) -> NDArray[np.int8]:
            rounded = _round(make_weight, compute(weights), where)
            return np.frombuffer(rounded, np.int8).reshape(out, inputs)

        def scales(weights: Weights) -> Floats:
            return np.frombuffer(_round(make_scales, compute(weights), where), "<f4")

        return {
            (position, name): Computed(where, "I8", (out, inputs), codes),
            (position, scale_name(name)): Computed(where, "F32", (out,), scales),
        }

    def sparse(self, count: int, elements: Callable[[], tuple[Integers, Floats]]) -> Change:
        """`count` elements added to the weight: their places in it, flat, and values; merged where
        they would take more bytes than the weight."""
        out, inputs = self.sizes
        if 2 * count + out >= out * inputs:

            def merge(weights: Weights) -> Floats:
                merged = weights[self.weight].copy()
                np.add.at(merged.reshape(-1), *elements())
                return merged

            return self.merge(merge)

        def ordered(_: Weights) -> tuple[Integers, Floats]:
            places, values = elements()
            order = np.argsort(places, kind="stable")
            return places[order], values[order]

        def ends(weights: Weights) -> Integers:
            return np.searchsorted(ordered(weights)[0], np.arange(1, out + 1) * inputs)

        name = self.name
        parts = {
            "values": Computed(name, "F32", (count,), lambda w: ordered(w)[1]),
            "columns": Computed(name, "I32", (count,), lambda w: ordered(w)[0] % inputs),
            "ends": Computed(name, "I32", (out,), ends),
        }
        return self.add("sparse", parts)

    def set_bias(self, compute: Callable[[Weights], Floats]) -> Change:
        """Another bias [out] instead of the base's or of none, riding on the base's block."""
        return self.add("bias", {"bias": self._part(compute, (self.place.rows,))})

    def _part(self, factor: Factor, shape: tuple[int, ...]) -> Part:
        if isinstance(factor, Source):
            return factor
        return Computed(self.name, "F32", shape, factor)


def read_modules(
    reader: SettingsReader,
    kind: str,
    tensors: Mapping[str, Source],
    layers: Layers,
    suffixes: Mapping[str, str],
    change: Callable[[Module], Change],
) -> AdapterPlan:
    """The plan of an adapter whose tensors are named by the linears that they change.

    `suffixes` say which part of `Module.parts` a tensor is by how its name ends; tensors of other
    names are whole ones of the base. Raises a CheckpointError.
    """
    found: dict[str, dict[str, Source]] = {}
    whole: dict[str, Source] = {}
    for name, source in tensors.items():
        suffix = next((end for end in suffixes if name.endswith(end)), None)
        if suffix is None:
            whole[name] = source
        else:
            found.setdefault(name.removesuffix(suffix), {})[suffixes[suffix]] = source
    saved, others = read_saved(reader, whole, layers)
    layers = with_shapes(layers, others)
    additions: list[Addition] = []
    replaced: dict[_Place, Part] = {}
    for name, parts in sorted(found.items()):
        place = find_linear(name, layers)
        if place.position == 0:
            raise UnsupportedModel(f"{name}: {kind} of an embedding is not supported")
        made = change(Module(name, place, layers, parts))
        additions += made.additions
        replaced |= made.replaced
    whole_parts = {**others, **_rebase(replaced, others)}
    return AdapterPlan(kind, [*additions, *saved], whole_parts, _merged_notes(replaced))


def take_shared(tensors: dict[str, Source], name: str, option: str) -> Source:
    """Remove a tensor that all modules share and return it. Raises UnsupportedModel if it was not
    saved, naming the option that saves it."""
    source = tensors.pop(f"base_model.{name}", None)
    if source is None:
        raise UnsupportedModel(
            f"the adapter was saved without {name}, which all its modules share; save it again "
            f"with {option}"
        )
    source.check_dtype()
    return source


def _merged_notes(replaced: Mapping[_Place, Part]) -> tuple[str, ...]:
    if not replaced:
        return ()
    count = sum(name.endswith("weight") for _, name in replaced)
    nbytes = sum(part.entry.nbytes for part in replaced.values())
    dtype = "int8" if any(part.entry.dtype == "I8" for part in replaced.values()) else "fp32"
    return (
        f"{count} weights are merged with the adapter and kept whole: {nbytes:,} bytes, {dtype}",
    )


def _rebase(merged: Mapping[_Place, Part], saved: Mapping[_Place, Part]) -> dict[_Place, Part]:
    """Merged weights, computed from what the adapter brings itself: peft saves a linear that it
    changes beside the change where that is the head."""
    own = {
        place: part.source if isinstance(part, Int8Part) else part for place, part in saved.items()
    }
    instead = {place: part for place, part in own.items() if isinstance(part, Source)}

    def rebase(part: Part) -> Part:
        if not isinstance(part, Computed):
            return part
        compute = part.compute
        return part._replace(compute=lambda weights: compute(weights.with_others(instead)))

    return {place: rebase(part) for place, part in merged.items()}


def _round(make: _Rounding, weight: Floats, where: str) -> memoryview:
    data = np.ascontiguousarray(weight, "<f4").data.cast("B")
    try:
        return make(data, "F32", weight.shape[1])
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _floats(factor: Factor, weights: Weights) -> Floats:
    return read_floats(factor) if isinstance(factor, Source) else factor(weights)
