"""What a family says about a checkpoint before a weight is read: layers, functions, tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from blockllm.core import Function
from blockllm.zoo.settings_reader import SettingsReader


class LayerPlan(NamedTuple):
    """One layer: its function and the shape of each tensor, by name relative to the layer.

    `linears` are the weights that rows are multiplied by: those a narrower format rounds.
    """

    function: Function
    shapes: dict[str, tuple[int, ...]]
    linears: tuple[str, ...] = ()


class ModelPlan(NamedTuple):
    """A whole model. `tied`: the head's weight is the embedding's unless both are saved."""

    layers: tuple[LayerPlan, ...]
    max_context: int
    tied: bool
    eos_ids: tuple[int, ...]  # what transformers assumes when no file names any


class Family(NamedTuple):
    """One architecture family: how it is named in config.json, and how a config becomes a plan."""

    name: str
    architecture: str
    plan: Callable[[SettingsReader], ModelPlan]
