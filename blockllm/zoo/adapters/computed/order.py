"""The linears of a base in the model's order, and those that a configuration names."""

from __future__ import annotations

from blockllm.errors import UnsupportedModel
from blockllm.zoo.adapters.plan import Layers, find_linear
from blockllm.zoo.families.names import tensor_name
from blockllm.zoo.settings_reader import SettingsReader

# of a layer
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def in_order(name: str, layers: Layers) -> tuple[int, int]:
    """Where a linear stands in the model; raises AdapterMismatch for what is none of the base."""
    module = name.rpartition(".")[2]
    return find_linear(name, layers).position, _ORDER.index(module) if module in _ORDER else 0


def targeted(reader: SettingsReader, layers: Layers, option: str) -> list[str]:
    """The linears that `target_modules` and `layers_to_transform` name, in the model's order.

    Raises UnsupportedModel where other options choose them; `option` saves what would do without.
    """
    wanted = reader.texts("target_modules") if not reader.is_text("target_modules") else []
    if not wanted or "layers_pattern" in reader:
        raise UnsupportedModel(
            f"{reader.where}: which linears the adapter changes follows from the file only with a "
            f"list of target_modules and no layers_pattern; save it again with {option}"
        )
    ends = tuple(f".{name}" for name in wanted)
    indices = reader.integers("layers_to_transform")
    saved = [f".{name}." for name in reader.texts("modules_to_save")]
    found = []
    for position, layer in enumerate(layers):
        for tensor in layer.tensors:
            name = tensor_name(position, tensor, len(layers) - 2).removesuffix(".weight")
            is_linear = tensor.endswith("weight") and "norm" not in tensor and position > 0
            is_meant = name in wanted or name.endswith(ends)
            of_layer = not indices or position - 1 in indices
            is_saved = any(module in f".{name}." for module in saved)
            if is_linear and is_meant and of_layer and not is_saved:
                found.append(name)
    return sorted(found, key=lambda name: in_order(name, layers))
