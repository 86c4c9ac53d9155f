"""Whole tensors that an adapter brings: `modules_to_save`, trained biases, trained norms.

Norms and biases become targets, so that the base's block stays shared. Weights of linears replace
the base's: the layer gets another digest, and takes its norms and biases with it. An embedding and
a head that are both replaced may have another vocabulary than the base's.
"""

from __future__ import annotations

from collections.abc import Mapping

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.plan import (
    Addition,
    Layers,
    Part,
    check_shape,
    find_linear,
    is_tied,
)
from blockllm.zoo.adapters.spelling import Whole, read_spellings
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.families.names import locate_tensor
from blockllm.zoo.int8 import round_weight
from blockllm.zoo.settings_reader import SettingsReader

Replaced = dict[tuple[int, str], Part]


def read_saved(
    reader: SettingsReader,
    tensors: Mapping[str, Source],
    layers: Layers,
    new_biases: bool = False,
) -> tuple[list[Addition], Replaced]:
    """Additions and replacements for tensors by the base's names, as PEFT's wrappers spell them.

    With `new_biases` linears without a bias may get one. Raises AdapterMismatch for tensors that
    have no place in the base or another shape.
    """
    additions: dict[tuple[int, str], Addition] = {}  # by the tensor that each stands for
    weights: dict[tuple[int, str], Whole] = {}
    for name, whole in read_spellings(reader, tensors).items():
        if name.endswith(".bias"):
            place, addition = _bias(name, whole.source, layers, new_biases)
            additions[place] = addition
        elif name.endswith("norm.weight"):
            place = _locate(name, whole.source, layers)
            module = place[1].removesuffix(".weight")
            additions[place] = Addition(place[0], module, "norm", {"weight": whole.source}, {})
        else:
            weights[_locate(name, whole.source, layers)] = whole
    replaced: Replaced = {}
    for place, whole in _with_twins(weights, layers).items():
        replaced |= _as_stored(place, whole.source, layers)
    _check_vocabulary(replaced, layers)
    return _fold(additions, replaced, layers)


def _locate(name: str, source: Source, layers: Layers) -> tuple[int, str]:
    place = locate_tensor(name, len(layers) - 2)
    stored = place and layers[place[0]].tensors.get(place[1])
    if place is None or stored is None or name.endswith(".scale"):
        raise AdapterMismatch(f"the base has no tensor {name[:200]!r}")
    shape = stored.shape
    if place in _ends(layers) and len(source.entry.shape) == 2 and source.entry.shape[0]:
        shape = (source.entry.shape[0], *shape[1:])  # a vocabulary of its own
    check_shape(name, source, shape)
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


def _with_twins(
    weights: dict[tuple[int, str], Whole], layers: Layers
) -> dict[tuple[int, str], Whole]:
    # peft loads what is no copy into the base's own parameter, which embedding and head may share
    ends = _ends(layers)
    if not is_tied(layers):
        return weights
    twins = {
        twin: weights[place]
        for place, twin in (ends, ends[::-1])
        if place in weights and twin not in weights and not weights[place].is_copy
    }
    return {**weights, **twins}


def _check_vocabulary(replaced: Replaced, layers: Layers) -> None:
    embed, head = (
        replaced[end].entry.shape[0] if end in replaced else layers[end[0]].tensors[end[1]].shape[0]
        for end in _ends(layers)
    )
    if embed != head:
        raise AdapterMismatch(
            f"the model would have {embed} rows in its embedding and {head} in its head: an "
            "adapter with a resized vocabulary brings both, or belongs on the resized base"
        )


def _ends(layers: Layers) -> tuple[tuple[int, str], tuple[int, str]]:
    return (0, "weight"), (len(layers) - 1, "weight")


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
