"""From trained layers to layers of the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from blockllm.core import Layer
from blockllm.offline.training.twin import TwinLayer
from blockllm.zoo import Zoo
from blockllm.zoo.assemble import NewLayer


def new_layers(zoo: Zoo, model: str, trained: Sequence[TwinLayer]) -> list[Layer | NewLayer]:
    """A model's layers, the trained ones in the places of its own."""
    dtype = storage_dtype(zoo, model)
    own = zoo.layers(model)
    return [new_layer(t, dtype) if is_trained(t) else o for t, o in zip(trained, own, strict=True)]


def is_trained(layer: TwinLayer) -> bool:
    """Whether some weight asks for a gradient."""
    return any(weight.requires_grad for weight in layer.weights.values())


def new_layer(layer: TwinLayer, dtype: torch.dtype) -> NewLayer:
    """The layer with its weights as arrays to be stored."""
    arrays: dict[str, NDArray[Any]] = {
        name: weight.detach().to(dtype).numpy() for name, weight in layer.weights.items()
    }
    return NewLayer(layer.function, dict(arrays))


def storage_dtype(zoo: Zoo, model: str) -> torch.dtype:
    """16 bits beside 16-bit weights, 32 beside others."""
    wide = zoo.card(model).dtype == "float32"
    return torch.float32 if wide else torch.float16
