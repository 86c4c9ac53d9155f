"""Where two models are joined, and what the joined chain costs. Pure: no weights.

front  e 1 2 3│4 h        cut (2, 3): e 1 2 → bridge → 4 h of the back model, which
back   e 1 2 3│4 h        skips its first 3 layers
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from blockllm.core import (
    BridgeFunction,
    EmbedFunction,
    Function,
    HeadFunction,
    Layer,
    LayerFunction,
)
from blockllm.errors import ZooError


class Cut(NamedTuple):
    """After how many layers the front model is left, and how many the back model skips."""

    front: int
    back: int


class Cost(msgspec.Struct, frozen=True):
    """What a chain holds, and computes for one token; both without KV memory."""

    nbytes: int  # of distinct tensors, as stored
    flops: int  # of the linears; a multiplication and an addition are two


def check_cut(front: Sequence[Layer], back: Sequence[Layer], cut: Cut) -> None:
    """Raise ZooError, saying why, unless the layers of the cut make a servable chain."""
    for layers, at, side in ((front, cut.front, "front"), (back, cut.back, "back")):
        if not 0 <= at <= len(layers) - 2:
            raise ZooError(
                f"the {side} model has {len(layers) - 2} layers: it cannot be cut at {at}"
            )
    kept = [*front[1 : cut.front + 1], *back[cut.back + 1 : -1]]
    shapes = {
        (f.num_kv_heads, f.head_dim)
        for f in (layer.function for layer in kept)
        if isinstance(f, LayerFunction)
    }
    if not shapes:
        raise ZooError(f"cut {cut.front}:{cut.back} leaves no layer of either model")
    if len(shapes) > 1:
        found = " and ".join(f"{heads} KV heads of {size}" for heads, size in sorted(shapes))
        raise ZooError(
            f"the halves keep KV of different shapes ({found}); a chain has one page pool, so the "
            "models must agree in KV heads and head size"
        )
    if vocabulary(front) != vocabulary(back):
        raise ZooError("the models have different vocabularies")


def vocabulary(layers: Sequence[Layer]) -> int:
    """Tokens that the model's head tells apart."""
    function = layers[-1].function
    assert isinstance(function, HeadFunction)
    return function.vocab_size


def output_size(layers: Sequence[Layer]) -> int:
    """Size of the hidden states of a whole model."""
    function = layers[0].function
    assert isinstance(function, EmbedFunction)
    return function.hidden_size


def bridge_function(front: Sequence[Layer], back: Sequence[Layer], cut: Cut) -> BridgeFunction:
    """The bridge of a cut; its position is the share of the front model's layers before it."""
    position = cut.front / (len(front) - 2)
    return BridgeFunction(output_size(front), output_size(back), position)


def matching_cuts(front: Sequence[Layer], back: Sequence[Layer]) -> list[Cut]:
    """Every place to leave the front model, each with the same relative depth of the back model
    (paired stitching: SN-Net, arXiv 2302.06586, section 3.3). The whole front model before a whole
    head of the other is one of them; whole models of one kind are not."""
    ours, theirs = len(front) - 2, len(back) - 2
    return [Cut(i, round(i * theirs / ours)) for i in range(ours + 1)]


def cost(layers: Iterable[Layer]) -> Cost:
    """Bytes and FLOPs of a chain of these layers."""
    layers = list(layers)
    tensors = {t.hash: t.nbytes for layer in layers for t in layer.tensors.values()}
    return Cost(sum(tensors.values()), sum(map(_flops, layers)))


def _flops(layer: Layer) -> int:
    function: Function = layer.function
    if isinstance(function, EmbedFunction):
        return 0
    if isinstance(function, BridgeFunction):  # its terms are summed once, at load
        return 2 * function.input_size * function.output_size
    matrices = (t.shape for t in layer.tensors.values() if len(t.shape) == 2)
    return 2 * sum(math.prod(shape) for shape in matrices)
