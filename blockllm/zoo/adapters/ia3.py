"""IA3 as PEFT saves it: (module).ia3_l, a vector that scales a linear's input or output.

[1, in] scales the input (PEFT's `feedforward_modules`), [out, 1] the output.
"""

from __future__ import annotations

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import (
    AdapterPlan,
    Addition,
    Layers,
    check_shape,
    find_linear,
    strip_prefix,
    with_shapes,
)
from blockllm.zoo.adapters.saved import read_saved
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_SUFFIX = ".ia3_l"
_OPTIONS = {
    "exclude_modules", "fan_in_fan_out", "feedforward_modules", "init_ia3_weights",
    "modules_to_save", "target_modules",
}  # fmt: skip
# read their input together with others, in one multiplication
_FUSED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")


def read_ia3(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """Check every tensor against the base's layers; raises a CheckpointError."""
    check_options(reader, _OPTIONS)
    named = strip_prefix(tensors)
    whole = {n: s for n, s in named.items() if not n.endswith(_SUFFIX)}
    additions, replaced = read_saved(reader, whole, layers)
    shaped = with_shapes(layers, replaced)
    gains = [_gain(n, s, shaped) for n, s in sorted(named.items()) if n.endswith(_SUFFIX)]
    return AdapterPlan("ia3", [*gains, *additions], replaced)


def _gain(name: str, source: Source, layers: Layers) -> Addition:
    place = find_linear(name.removesuffix(_SUFFIX), layers)
    sides: dict[tuple[int, ...], str] = {(place.rows, 1): "output", (1, place.columns): "input"}
    side = sides.get(source.entry.shape)
    if side is None or place.position == 0:
        found = list(source.entry.shape)
        raise AdapterMismatch(
            f"{name[:200]}: expected [out, 1] or [1, in] of a linear, got {found}"
        )
    if side == "input" and place.module.endswith(_FUSED):
        raise UnsupportedModel(
            f"{name[:200]}: scaling the input of {place.module} is not supported, because others "
            "read it too; train with feedforward_modules of down_proj or o_proj only"
        )
    size = max(source.entry.shape)
    flat = source._replace(entry=source.entry._replace(shape=(size,)))
    check_shape(name, flat, (size,))
    return Addition(place.position, place.module, "gain", {"gain": flat}, {"side": side})
