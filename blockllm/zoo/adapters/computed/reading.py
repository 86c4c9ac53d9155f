"""From the tensors of a PEFT file to the plan of one kind, linear by linear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from blockllm.errors import UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.plan import (
    AdapterPlan,
    Addition,
    Computed,
    Layers,
    Part,
    find_linear,
    with_shapes,
)
from blockllm.zoo.adapters.saved import read_saved
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.int8 import Int8Part
from blockllm.zoo.settings_reader import SettingsReader

_Place = tuple[int, str]  # position, tensor's name

# options that say how an adapter was trained, or name what its tensors name as well
COMMON = frozenset(
    {
        "bias", "exclude_modules", "fan_in_fan_out", "init_weights", "layers_pattern",
        "layers_to_transform", "modules_to_save", "target_modules",
    }
)  # fmt: skip


def read_modules(
    reader: SettingsReader,
    kind: str,
    tensors: Mapping[str, Source],
    layers: Layers,
    suffixes: Mapping[str, str],
    change: Callable[[Module], Change],
    others: Iterable[str] = (),
) -> AdapterPlan:
    """The plan of an adapter whose tensors are named by the linears that they change.

    `suffixes` say which part of `Module.parts` a tensor is by how its name ends; tensors of other
    names are whole ones of the base. `others` are linears that have no tensors of their own.
    Raises a CheckpointError.
    """
    found: dict[str, dict[str, Source]] = {name: {} for name in others}
    whole: dict[str, Source] = {}
    for name, source in tensors.items():
        suffix = next((end for end in suffixes if name.endswith(end)), None)
        if suffix is None and f".{kind}_" in name:
            raise UnsupportedModel(
                f"tensor {name[:200]!r} is not supported: {kind} of an embedding, or as another "
                "version of peft wrote it; merge the adapter into its base"
            )
        if suffix is None:
            whole[name] = source
        else:
            found.setdefault(name.removesuffix(suffix), {})[suffixes[suffix]] = source
    saved, weights = read_saved(reader, whole, layers)
    layers = with_shapes(layers, weights)
    additions: list[Addition] = []
    replaced: dict[_Place, Part] = {}
    for name, parts in sorted(found.items()):
        place = find_linear(name, layers)
        if place.position == 0:
            raise UnsupportedModel(f"{name}: {kind} of an embedding is not supported")
        made = change(Module(name, place, layers, parts))
        additions += made.additions
        replaced |= made.replaced
    kept, folded = _fold(saved, replaced, layers)
    own = {**weights, **folded}
    rebased = [
        a._replace(parts={n: _rebase(p, own) for n, p in a.parts.items()}) for a in additions
    ]
    merged = {place: _rebase(part, own) for place, part in replaced.items()}
    return AdapterPlan(kind, [*rebased, *kept], {**own, **merged}, _merged_notes(replaced))


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


def _fold(
    saved: list[Addition], merged: Mapping[_Place, Part], layers: Layers
) -> tuple[list[Addition], dict[_Place, Part]]:
    """Saved norms and biases of layers that are new anyway replace those of the base."""
    positions = {position for position, _ in merged}
    kept: list[Addition] = []
    folded: dict[_Place, Part] = {}
    for addition in saved:
        position, module, kind, parts, _ = addition
        tensor = f"{module}.{'bias' if kind == 'bias' else 'weight'}".removeprefix("head.")
        if position in positions and tensor in layers[position].tensors:
            (folded[position, tensor],) = parts.values()
        else:
            kept.append(addition)
    return kept, folded


def _rebase(part: Part, saved: Mapping[_Place, Part]) -> Part:
    """The part, computed from what the adapter brings itself: peft saves a linear that it changes
    beside the change where that is the head."""
    if not isinstance(part, Computed):
        return part
    own = {p: s.source if isinstance(s, Int8Part) else s for p, s in saved.items()}
    instead = {place: source for place, source in own.items() if isinstance(source, Source)}
    compute = part.compute
    return part._replace(compute=lambda weights: compute(weights.with_others(instead)))
