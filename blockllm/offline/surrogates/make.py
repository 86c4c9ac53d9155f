"""Surrogates of a model's decoder layers: prune by importance, then distil for a few steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from blockllm.core import LayerFunction
from blockllm.offline.surrogates.prune import prune, taylor_scores
from blockllm.offline.training.loop import Report, TrainingSchedule, train
from blockllm.offline.training.texts import batches
from blockllm.offline.training.twin import (
    TwinLayer,
    divergence,
    hidden_states,
    run_layers,
)

_SCORED = 8  # windows that importance is estimated on; more hardly change the order


def decoders(layers: Sequence[TwinLayer]) -> list[int]:
    """Positions of the decoder layers."""
    return [i for i, layer in enumerate(layers) if isinstance(layer.function, LayerFunction)]


def make_surrogates(
    layers: Sequence[TwinLayer],
    windows: torch.Tensor,  # [windows, tokens] ids
    ratio: float,
    schedule: TrainingSchedule,
    task: str,
    checkpoint: Path | None,
    report: Report,
) -> list[TwinLayer]:
    """The model with a surrogate of every decoder layer, all trained at once.

    Each learns to give what its layer gives on the layer's own inputs, and all together, one
    behind the other, to give the model's next-token distributions: they serve one by one and as a
    draft chain.
    """
    scores = iter(taylor_scores(layers, batches(windows[:_SCORED], schedule.rows)))
    pruned = [
        prune(layer, next(scores), ratio).trainable()
        if isinstance(layer.function, LayerFunction)
        else layer
        for layer in layers
    ]
    positions = decoders(layers)
    trained = {f"{i}.{n}": w for i in positions for n, w in pruned[i].weights.items()}

    def loss_of(ids: torch.Tensor, step: int) -> torch.Tensor:
        with torch.no_grad():
            outputs = hidden_states(layers, ids)
        errors = [
            relative_error(pruned[i](outputs[i - 1]), outputs[i - 1], outputs[i]) for i in positions
        ]
        drafted = run_layers(pruned[1:], outputs[0])
        return divergence(drafted, outputs[-1]) + torch.stack(errors).mean()

    train(trained, loss_of, windows, schedule, task, checkpoint, report)
    return pruned


def relative_error(found: torch.Tensor, before: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared error of a layer's output, relative to what the layer changes. All [.., size]"""
    return (found - wanted).pow(2).sum() / (wanted - before).pow(2).sum()
