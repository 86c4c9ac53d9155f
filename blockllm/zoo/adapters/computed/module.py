"""One linear that an adapter changes, and the two ways in which that is kept.

low rank   A [rank, in] and B [out, rank] beside the base's weight, where they are smaller than it
merged     the changed weight, fp32, instead of the base's: the layer becomes another one
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockllm.errors import AdapterMismatch, CheckpointError
from blockllm.zoo.adapters.plan import (
    Addition,
    Computed,
    Layers,
    LinearPlace,
    Part,
    check_shape,
)
from blockllm.zoo.arrays import Floats, Integers, Weights, check_integers, read_floats
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.int8 import scale_name
from blockllm.zoo.rounding import make_scales, make_weight

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
    place: LinearPlace
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
        if rank == 0:  # as AdaLoRA's allocation may leave it
            return Change()
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
        if count == 0:
            return Change()
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


def _round(make: _Rounding, weight: Floats, where: str) -> memoryview:
    data = np.ascontiguousarray(weight, "<f4").data.cast("B")
    try:
        return make(data, "F32", weight.shape[1])
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _floats(factor: Factor, weights: Weights) -> Floats:
    return read_floats(factor) if isinstance(factor, Source) else factor(weights)
