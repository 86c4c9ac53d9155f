"""Bottleneck adapters as AdapterHub's library `adapters` saves them.

model.layers.0.attention_adapters.adapters.(name).adapter_down.0.weight, .bias    behind attention
model.layers.0.output_adapters.adapters.(name).adapter_up.weight, .bias           behind the MLP
"""

from __future__ import annotations

import re

from blockllm.core import LayerFunction
from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.bottleneck_config import BottleneckConfig, read_bottleneck_config
from blockllm.zoo.adapters.plan import AdapterPlan, Addition, Layers, check_shape
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_MODULES = {"attention_adapters": "self_attn", "output_adapters": "mlp"}
_PARTS = {
    "adapter_down.0.weight": "down",
    "adapter_down.0.bias": "down_bias",
    "adapter_up.weight": "up",
    "adapter_up.bias": "up_bias",
}
_TENSOR = re.compile(
    r"(?:model\.)?layers\.(0|[1-9][0-9]{0,5})\.(attention_adapters|output_adapters)"
    r"\.adapters\.(.+)\.(adapter_(?:down\.0|up)\.(?:weight|bias))"
)


def read_bottlenecks(
    reader: SettingsReader, tensors: dict[str, Source], layers: Layers
) -> AdapterPlan:
    """Check every tensor against the base's layers; raises a CheckpointError."""
    config = read_bottleneck_config(reader)
    places: dict[tuple[int, str], dict[str, Source]] = {}
    for name, source in tensors.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match[3] != config.name:
            raise AdapterMismatch(
                f"tensor {name[:200]!r} is none of the bottleneck adapter {config.name[:80]!r}"
            )
        places.setdefault((int(match[1]), _MODULES[match[2]]), {})[_PARTS[match[4]]] = source
    indices = [i for i in range(len(layers) - 2) if i not in config.left_out]
    expected = {(index, module) for index in indices for module in config.modules}
    if set(places) != expected:
        index, module = min(set(places) ^ expected)
        problem = "is missing" if (index, module) in expected else "is there, but not configured"
        raise AdapterMismatch(f"the adapter behind {module} of layer {index} {problem}")
    found = [_bottleneck(config, place, parts, layers) for place, parts in sorted(places.items())]
    return AdapterPlan("bottleneck", found, {})


def _bottleneck(
    config: BottleneckConfig, place: tuple[int, str], parts: dict[str, Source], layers: Layers
) -> Addition:
    index, module = place
    function = layers[index + 1].function
    where = f"the adapter behind {module} of layer {index}"
    if not isinstance(function, LayerFunction):
        raise AdapterMismatch(f"{where}: that layer is no decoder layer")
    hidden = function.hidden_size
    size = config.size(index, hidden)
    shapes = {
        "down": (size, hidden), "down_bias": (size,), "up": (hidden, size), "up_bias": (hidden,)
    }  # fmt: skip
    if set(parts) != set(shapes):
        missing = ", ".join(sorted(set(shapes) - set(parts)))
        raise AdapterMismatch(f"{where} lacks {missing}")
    for part, source in parts.items():
        check_shape(f"{where}, {part}", source, shapes[part])
    settings = {"activation": config.activation, "reads": config.reads, "scale": config.scale}
    return Addition(index + 1, module, "bottleneck", parts, settings)
