"""Whole tensors that an adapter brings: `modules_to_save`, trained biases, trained norms.

Norms and biases become targets, so that the base's block stays shared. Weights of linears replace
the base's: the layer gets another digest, and takes its norms and biases with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.plan import Addition, Layers, Part, check_shape, find_linear
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.families.names import locate_tensor
from blockllm.zoo.int8 import round_weight

Replaced = dict[tuple[int, str], Part]


def read_saved(
    tensors: Mapping[str, Source], layers: Layers, new_biases: bool = False
) -> tuple[list[Addition], Replaced]:
    """Additions and replacements for tensors by the base's names.

    With `new_biases` linears without a bias may get one. Raises AdapterMismatch for tensors that
    have no place in the base or another shape.
    """
    additions: dict[tuple[int, str], Addition] = {}  # by the tensor that each stands for
    replaced: Replaced = {}
    for key, source in tensors.items():
        name = key.replace(".base_layer.", ".")
        if name != key and name in tensors:
            raise AdapterMismatch(f"tensor {name[:200]!r} is there in two ways")
        if name.endswith(".bias"):
            place, addition = _bias(name, source, layers, new_biases)
            additions[place] = addition
        elif name.endswith("norm.weight"):
            place = _locate(name, source, layers)
            module = place[1].removesuffix(".weight")
            additions[place] = Addition(place[0], module, "norm", {"weight": source}, {})
        else:
            _replace(replaced, name, source, layers, is_tied_in=name != key)
    return _fold(additions, replaced, layers)


def _locate(name: str, source: Source, layers: Layers) -> tuple[int, str]:
    place = locate_tensor(name, len(layers) - 2)
    stored = place and layers[place[0]].tensors.get(place[1])
    if place is None or stored is None or name.endswith(".scale"):
        raise AdapterMismatch(f"the base has no tensor {name[:200]!r}")
    check_shape(name, source, stored.shape)
    return place


def _bias(
    name: str, source: Source, layers: Layers, new_biases: bool
) -> tuple[tuple[int, str], Addition]:
    linear = find_linear(name.removesuffix(".bias"), layers)
    place = linear.position, f"{linear.weight.removesuffix('weight')}bias"
    if linear.position == 0 or not (new_biases or place[1] in layers[linear.position].tensors):
        raise AdapterMismatch(f"the base has no tensor {name[:200]!r}")
    check_shape(name, source, (linear.rows,))
    return place, Addition(linear.position, linear.module, "bias", {"bias": source}, {})


def _replace(
    replaced: Replaced, name: str, source: Source, layers: Layers, is_tied_in: bool
) -> None:
    place = _locate(name, source, layers)
    # peft loads `base_layer` into the base's own parameter, which embedding and head may share;
    # modules_to_save is a copy beside it and unties them
    twin = _tied_twin(place, layers) if is_tied_in else None
    if twin is not None and twin not in replaced:
        replaced |= _as_stored(twin, source, layers)
    replaced |= _as_stored(place, source, layers)


def _fold(
    additions: dict[tuple[int, str], Addition], replaced: Replaced, layers: Layers
) -> tuple[list[Addition], Replaced]:
    new = {position for position, _ in replaced}
    kept = []
    for (position, tensor), addition in additions.items():
        if position in new and tensor in layers[position].tensors:
            (replaced[position, tensor],) = addition.parts.values()
        else:
            kept.append(addition)
    return kept, replaced


def _as_stored(place: tuple[int, str], source: Source, layers: Layers) -> Replaced:
    """The replacement in the format of what it replaces."""
    position, name = place
    if layers[position].tensors[name].dtype != "I8":
        return {place: source}
    return {(position, part): rounded for part, rounded in round_weight(name, source).items()}


def _tied_twin(place: tuple[int, str], layers: Layers) -> tuple[int, str] | None:
    # an int8 head has parted from the embedding already
    ends = ((0, "weight"), (len(layers) - 1, "weight"))
    tied = layers[0].tensors["weight"].hash == layers[-1].tensors["weight"].hash
    if place not in ends or not tied:
        return None
    return ends[1] if place == ends[0] else ends[0]
