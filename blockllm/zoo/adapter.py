"""A PEFT LoRA adapter's tensors, sorted into low-rank updates and replaced tensors.

base_model.model.(module).lora_A.weight   lora_B.weight   lora_B.bias
base_model.model.(module).lora_embedding_A   lora_embedding_B
base_model.model.(module).[base_layer.]weight   bias            replaced
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from blockllm.core import Layer, LoraTarget, Tensor
from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapter_config import AdapterConfig
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.digest import layer_digest
from blockllm.zoo.families.names import locate_module, locate_tensor
from blockllm.zoo.int8 import round_weight
from blockllm.zoo.packs import PackWriter, Readable
from blockllm.zoo.records import Record, Targets

_PREFIX = "base_model.model."
_PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}


class Update(NamedTuple):
    """The low-rank update of one module, before its tensors are stored."""

    position: int
    module: str
    scale: float
    parts: dict[str, Source]  # a, b and perhaps bias


class AdapterPlan(NamedTuple):
    """What an adapter does to its base: updates, and replacements by (position, tensor name)."""

    updates: list[Update]
    replaced: dict[tuple[int, str], Readable]


def plan_adapter(
    config: AdapterConfig, tensors: dict[str, Source], base: tuple[Layer, ...]
) -> AdapterPlan:
    """Check every tensor of an adapter against its base's layers.

    Raises AdapterMismatch for tensors that have no place there or another shape.
    """
    modules: dict[str, dict[str, Source]] = {}
    replaced: dict[tuple[int, str], Readable] = {}
    for name, source in tensors.items():
        key = name.removeprefix(_PREFIX)
        suffix = next((end for end in _PARTS if key.endswith(end)), None)
        if key == name:
            raise AdapterMismatch(f"tensor {name[:200]!r} does not start with {_PREFIX}")
        if suffix is not None:
            modules.setdefault(key.removesuffix(suffix), {})[_PARTS[suffix]] = source
        else:
            _replace(replaced, key, source, base)
    updates = [_update(config, name, parts, base) for name, parts in sorted(modules.items())]
    if not updates and not replaced:
        raise AdapterMismatch("the adapter has no tensors")
    return AdapterPlan(updates, replaced)


def store_adapter(
    plan: AdapterPlan, name: str, root: str, base: Record, writer: PackWriter
) -> Record:
    """Write the adapter's new tensors as one pack; layers with replaced tensors become new ones."""
    sources: dict[tuple[int, str], Readable] = {
        (update.position, f"{update.module} {part}"): source
        for update in plan.updates
        for part, source in update.parts.items()
    }
    stored = writer.add({**sources, **plan.replaced})
    layers = list(base.layers)
    for position, key in plan.replaced:
        function = layers[position].function
        tensors = {**layers[position].tensors, key: stored[position, key]}
        layers[position] = Layer(layer_digest(function, tensors), function, tensors)
    targets: Targets = {}
    for position, module, scale, parts in plan.updates:
        low_rank = {part: stored[position, f"{module} {part}"] for part in parts}
        targets.setdefault(position, {})[module] = LoraTarget(scale=scale, **low_rank)
    return msgspec.structs.replace(
        base, name=name, kind="lora", parent=base.name, root=root, layers=tuple(layers),
        targets=targets, assets={},
    )  # fmt: skip


def _update(
    config: AdapterConfig, name: str, parts: dict[str, Source], base: tuple[Layer, ...]
) -> Update:
    place = locate_module(name, len(base) - 2)
    weight = place and base[place[0]].tensors.get(place[2])
    if place is None or weight is None or len(weight.shape) != 2:
        raise AdapterMismatch(f"the base has no linear module {name[:200]!r}")
    expected = {"a", "b", "bias"} if config.has_bias and place[0] else {"a", "b"}
    if set(parts) != expected:
        raise AdapterMismatch(f"{name}: expected lora {sorted(expected)}, got {sorted(parts)}")
    rank = config.rank_of(name)
    rows, columns = weight.shape
    # an embedding is looked up, not multiplied: its rows are what a linear's columns are
    inputs, outputs = (columns, rows) if place[0] else (rows, columns)
    shapes = {"a": (rank, inputs), "b": (outputs, rank), "bias": (outputs,)}
    for part, source in parts.items():
        _check(f"{name}, lora {part}", source, shapes[part])
    return Update(place[0], place[1], config.scale_of(name), parts)


def _replace(
    replaced: dict[tuple[int, str], Readable], key: str, source: Source, base: tuple[Layer, ...]
) -> None:
    name = key.replace(".base_layer.", ".")
    place = locate_tensor(name, len(base) - 2)
    stored = place and base[place[0]].tensors.get(place[1])
    if place is None or stored is None or name.endswith(".scale"):
        raise AdapterMismatch(f"the base has no tensor {name[:200]!r}")
    _check(name, source, stored.shape)
    twin = _tied_twin(place, base) if name != key else None
    if twin is not None and twin not in replaced:
        replaced |= _as_stored(twin, source, base)
    replaced |= _as_stored(place, source, base)


def _as_stored(
    place: tuple[int, str], source: Source, base: tuple[Layer, ...]
) -> dict[tuple[int, str], Readable]:
    """The replacement in the format of what it replaces."""
    position, name = place
    if base[position].tensors[name].dtype != "I8":
        return {place: source}
    return {(position, part): rounded for part, rounded in round_weight(name, source).items()}


def _tied_twin(place: tuple[int, str], base: tuple[Layer, ...]) -> tuple[int, str] | None:
    # peft loads `base_layer` into the base's own parameter, which embedding and head may share;
    # modules_to_save is a copy beside it and unties them; an int8 head has parted already
    ends = ((0, "weight"), (len(base) - 1, "weight"))
    if place not in ends or not _is_tied(base):
        return None
    return ends[1] if place == ends[0] else ends[0]


def _is_tied(base: tuple[Layer, ...]) -> bool:
    embed: Tensor = base[0].tensors["weight"]
    return embed.hash == base[-1].tensors["weight"].hash


def _check(name: str, source: Source, shape: tuple[int, ...]) -> None:
    if source.entry.shape != shape:
        found = list(source.entry.shape)
        raise AdapterMismatch(f"{name}: expected shape {list(shape)}, got {found}")
    source.check_dtype()
