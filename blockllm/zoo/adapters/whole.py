"""Kinds that bring nothing but whole tensors: norms (PEFT's LN_TUNING) and biases (BitFit).

PEFT has no type for BitFit. Its folder is adapter_model.safetensors with tensors named as in the
base's checkpoint (`model.layers.0.self_attn.q_proj.bias`) beside an adapter_config.json of
{"peft_type": "BITFIT", "base_model_name_or_path": "…"}. Linears without a bias may get one.
"""

from __future__ import annotations

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import (
    PREFIX,
    AdapterPlan,
    Layers,
    strip_prefix,
)
from blockllm.zoo.adapters.saved import read_saved
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_NORM = ".ln_tuning_layers."


def read_norms(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's LN_TUNING; raises a CheckpointError."""
    check_options(reader, {"target_modules", "exclude_modules", "modules_to_save"})
    named = {name.replace(_NORM, "."): s for name, s in strip_prefix(tensors).items()}
    if len(named) < len(tensors):
        raise AdapterMismatch("a norm is there in two ways")
    return AdapterPlan("ln", *read_saved(reader, named, layers))


def read_biases(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """BitFit; raises a CheckpointError."""
    check_options(reader, set())
    named = {name.removeprefix(PREFIX): source for name, source in tensors.items()}
    for name in named:
        if not name.endswith(".bias"):
            raise AdapterMismatch(f"tensor {name[:200]!r} is no bias")
    return AdapterPlan("bitfit", *read_saved(reader, named, layers, new_biases=True))
