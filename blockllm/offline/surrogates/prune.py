"""Structured pruning of decoder layers: whole query heads and MLP channels leave, least important
first. Pure: weights in, smaller weights out.

Importance is the first-order Taylor estimate of what removing a unit does to the loss, as in
LLM-Pruner (arXiv 2305.11627, section 3.2): |∂loss / ∂gate| of a gate that multiplies the unit
(arXiv 1905.10650, section 4.1), summed over sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import torch

from blockllm.core import LayerFunction
from blockllm.offline.training.twin import TwinLayer, run_layers

_MULTIPLE = 8  # channels are kept in such runs: what vector units and memory lines like


class Scores(NamedTuple):
    """Importance of a decoder layer's units; larger is more important."""

    heads: torch.Tensor  # [num_heads]
    channels: torch.Tensor  # [intermediate]


def taylor_scores(layers: Sequence[TwinLayer], batches: Iterable[torch.Tensor]) -> list[Scores]:
    """Scores of a whole model's decoder layers, in order, by its own next-token loss on batches of
    ids [rows, tokens]."""
    decoders = [layer for layer in layers if isinstance(layer.function, LayerFunction)]
    sums: list[Scores] = []
    try:
        for ids in batches:
            found = _batch_scores(layers, decoders, ids)
            sums = [_add(a, b) for a, b in zip(sums, found, strict=True)] if sums else found
    finally:
        for layer in decoders:
            layer.head_gate = layer.channel_gate = None
    return sums


def _batch_scores(
    layers: Sequence[TwinLayer], decoders: Sequence[TwinLayer], ids: torch.Tensor
) -> list[Scores]:
    gates: list[torch.Tensor] = []
    for layer in decoders:
        assert isinstance(layer.function, LayerFunction)
        sizes = layer.function.num_heads, layer.function.intermediate_size
        layer.head_gate, layer.channel_gate = (
            torch.ones(len(ids), size, requires_grad=True) for size in sizes
        )
        gates += [layer.head_gate, layer.channel_gate]
    logits = run_layers(layers, ids[:, :-1])
    targets = ids[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
    grads = [grad.abs().sum(0) for grad in torch.autograd.grad(loss, gates)]
    return [Scores(*pair) for pair in zip(grads[::2], grads[1::2], strict=True)]


def _add(left: Scores, right: Scores) -> Scores:
    return Scores(left.heads + right.heads, left.channels + right.channels)


def prune(layer: TwinLayer, scores: Scores, ratio: float) -> TwinLayer:
    """The layer without its least important `ratio` of query heads and MLP channels.

    Every group of query heads on one KV head loses equally many, at least one stays, and all KV
    heads stay: the KV has the shape that it had.
    """
    function = layer.function
    assert isinstance(function, LayerFunction)
    heads, channels = kept_heads(scores.heads, function, ratio), _kept_channels(scores, ratio)
    smaller = msgspec.structs.replace(
        function, num_heads=len(heads), intermediate_size=len(channels)
    )
    width = function.head_dim
    columns = (heads[:, None] * width + torch.arange(width)).flatten()
    kept = {
        "self_attn.q_proj": (0, columns),
        "self_attn.o_proj": (1, columns),
        "mlp.gate_proj": (0, channels),
        "mlp.up_proj": (0, channels),
        "mlp.down_proj": (1, channels),
    }
    weights = {}
    for name, weight in layer.weights.items():
        axis, indices = kept.get(name.rpartition(".")[0], (weight.ndim, columns))
        # a bias of outputs that all stay is whole
        weights[name] = weight.index_select(axis, indices) if axis < weight.ndim else weight.clone()
    return TwinLayer(smaller, weights)


def kept_heads(importance: torch.Tensor, function: LayerFunction, ratio: float) -> torch.Tensor:
    """The query heads that stay, equally many of each KV head's group, ascending."""
    groups = importance.view(function.num_kv_heads, -1)  # [kv heads, heads of a group]
    size = groups.shape[1]
    count = max(1, size - round(ratio * size))
    best = groups.topk(count, dim=1).indices.sort(dim=1).values
    return (best + torch.arange(len(groups))[:, None] * size).flatten()


def _kept_channels(scores: Scores, ratio: float) -> torch.Tensor:
    size = len(scores.channels)
    wanted = size - round(ratio * size)
    count = min(size, max(1, -(-wanted // _MULTIPLE)) * _MULTIPLE)
    return scores.channels.topk(count).indices.sort().values
