"""Uni-LoRA: every number of A and B is one of a small vector, times a scale (arXiv 2506.00799).

(module).unilora_indices_A, unilora_scales_A [r, in]; B likewise [out, r]. Where they were not
saved, the default, they are drawn again for all linears in order, with numpy as PEFT does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.order import targeted
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules, take_shared
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import MAX_RANK
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, find_linear, strip_prefix
from blockllm.zoo.arrays import Floats, Integers, read_floats, read_integers
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_OPTIONS = COMMON | {
    "init_theta_d_bound", "proj_seed", "r", "save_indices", "theta_d_length", "unilora_dropout",
}  # fmt: skip
_MOST_DRAWN = 1 << 28  # numbers of all A and B together


class _Side(NamedTuple):
    """Of a module's A or B: which numbers of the vector it takes, and their scales."""

    places: Integers
    scales: Floats


def read_unilora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's UNILORA; raises a CheckpointError."""
    check_options(reader, _OPTIONS)
    rank, rest = reader.integer("r", high=MAX_RANK), dict(tensors)
    store = take_shared(rest, "unilora_theta_d", "save_pretrained")
    size = reader.integer("theta_d_length", 256)
    if store.entry.shape != (size,):
        raise AdapterMismatch(f"unilora_theta_d: expected [{size}], got {list(store.entry.shape)}")
    is_saved = any(name.endswith(".unilora_indices_A") for name in rest)
    names = [] if is_saved else targeted(reader, layers, "save_indices=True")
    drawn = _draw(reader, rank, size, names, layers)

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        for side, shape in {"A": (rank, inputs), "B": (out, rank)}.items() if is_saved else ():
            module.check_part(f"scales_{side}", shape)
            module.check_places(f"indices_{side}", shape)

        def take(side: str) -> Floats:
            if not is_saved:
                places, scales = drawn()[module.name, side]
                return read_floats(store)[places] * scales
            own = read_integers(module.parts[f"indices_{side}"], size)
            return read_floats(store)[own] * module.read(f"scales_{side}")

        return module.low_rank(rank, lambda _: take("A"), lambda _: take("B"))

    parts = [f"{part}_{side}" for part in ("indices", "scales") for side in "AB"]
    suffixes = {f".unilora_{part}": part for part in parts}
    return read_modules(reader, "unilora", strip_prefix(rest), layers, suffixes, change, names)


def _draw(
    reader: SettingsReader, rank: int, size: int, names: list[str], layers: Layers
) -> Callable[[], dict[tuple[str, str], _Side]]:
    """What every module's A and B take, once asked for: each number of the vector equally often."""
    places = {name: find_linear(name, layers) for name in names}
    shapes: dict[tuple[str, str], tuple[int, int]] = {}
    for name, place in places.items():
        shapes[name, "A"], shapes[name, "B"] = (rank, place.columns), (place.rows, rank)
    total = sum(rows * columns for rows, columns in shapes.values())
    if total > _MOST_DRAWN:
        raise UnsupportedModel(
            f"{reader.where}: {total:,} numbers are too many to be drawn again; save the adapter "
            "again with save_indices=True"
        )
    seed = reader.integer("proj_seed", 42, low=0)

    @functools.cache
    def draw() -> dict[tuple[str, str], _Side]:
        random = np.random.default_rng(seed)
        numbers = np.repeat(np.arange(size), total // size)
        if total % size:
            extra = random.choice(size, size=total % size, replace=False)
            numbers = np.concatenate([numbers, extra])
        random.shuffle(numbers)
        counts = np.bincount(numbers, minlength=size)
        found, start = {}, 0
        for key, shape in shapes.items():
            own = numbers[start : start + shape[0] * shape[1]].reshape(shape)
            found[key] = _Side(own, (1 / np.sqrt(counts[own])).astype(np.float32))
            start += own.size
        return found

    return draw
