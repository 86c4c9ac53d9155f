"""Where a tensor or module of a Hugging Face decoder model belongs in the sequence of layers.

position 0        1 … L                    L + 1
         embed    model.layers.0 … L-1     head (model.norm, lm_head)
"""

from __future__ import annotations

import re

_DECODER = re.compile(r"model\.layers\.(0|[1-9][0-9]{0,5})\.(.+)")
_EMBED = "model.embed_tokens"
_NORM = "model.norm"
_HEAD = "lm_head"
# either may stand for both where embedding and head are one tensor
TIED_NAMES = (f"{_EMBED}.weight", f"{_HEAD}.weight")


def locate_tensor(name: str, num_layers: int) -> tuple[int, str] | None:
    """(position, name in the layer) of a tensor of a model with `num_layers` decoder layers."""
    if match := _DECODER.fullmatch(name):
        index = int(match[1])
        return (index + 1, match[2]) if index < num_layers else None
    head = num_layers + 1
    places = {
        f"{_EMBED}.weight": (0, "weight"),
        f"{_NORM}.weight": (head, "norm.weight"),
        f"{_HEAD}.weight": (head, "weight"),
    }
    return places.get(name)


def tensor_name(position: int, name: str, num_layers: int) -> str:
    """The Hugging Face name of a layer's tensor: the inverse of `locate_tensor`."""
    if position == 0:
        return f"{_EMBED}.{name}"
    if position <= num_layers:
        return f"model.layers.{position - 1}.{name}"
    return f"model.{name}" if name == "norm.weight" else f"{_HEAD}.{name}"


def locate_module(name: str, num_layers: int) -> tuple[int, str, str] | None:
    """(position, module as deltas call it, name of its weight in the layer) of a linear module."""
    place = locate_tensor(f"{name}.weight", num_layers)
    if place is None or place[1] == "norm.weight":
        return None
    position, weight = place
    if position == 0:
        return position, "embed", weight
    if position > num_layers:
        return position, "head", weight
    return position, weight.removesuffix(".weight"), weight
