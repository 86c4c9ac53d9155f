"""PEFT's `layer_replication`: the adapter's model has layers of its base several times.

layers of the base   0 1 2 3 4      [[0, 4], [2, 5]]   →   0 1 2 3 2 3 4

Each occurrence has updates of its own and keeps its own KV; the base's layers stay shared.
"""

from __future__ import annotations

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.plan import Layers
from blockllm.zoo.families.decoder import MAX_LAYERS
from blockllm.zoo.settings_reader import SettingsReader

_OPTION = "layer_replication"


def replicate(reader: SettingsReader, layers: Layers) -> Layers | None:
    """The layers in the adapter's order, None for the base's; raises a CheckpointError."""
    ranges = reader.pairs(_OPTION)
    if not ranges:
        return None
    count = len(layers) - 2
    if not all(0 <= start < end <= count for start, end in ranges):
        raise AdapterMismatch(
            f"{reader.where}: {_OPTION}: expected ranges of {count} layers, got {ranges[:8]}"
        )
    if sum(end - start for start, end in ranges) > MAX_LAYERS:
        raise AdapterMismatch(f"{reader.where}: {_OPTION}: more than {MAX_LAYERS} layers")
    inner = [layer for start, end in ranges for layer in layers[1 + start : 1 + end]]
    return (layers[0], *inner, layers[-1])
