"""Bridges: initialised by least squares on paired hidden states, then trained by distillation.

One bridge serves several cuts: its weights are polynomials in the position, as in BlockLLM (arXiv
2404.18322, section 3), whose position is one more constant input: a bias of two terms, a
weight of one. Least squares before training: SN-Net (arXiv 2302.06586, section 3.2); joining
language models by a trained layer: StitchLLM (ACL 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from blockllm.core import BridgeFunction
from blockllm.offline.stitching.cuts import Cut
from blockllm.offline.training.loop import Report, TrainingSchedule, train
from blockllm.offline.training.texts import batches
from blockllm.offline.training.twin import (
    TwinLayer,
    Weights,
    divergence,
    hidden_states,
    run_layers,
)

_RIDGE = 1e-4  # of the mean square of the inputs: keeps rarely used directions small


class BridgePowers(NamedTuple):
    """Powers of the position that weight and bias have."""

    weight: int = 2
    bias: int = 2


class Pair(NamedTuple):
    """Hidden states of the same tokens on both sides of a cut."""

    before: torch.Tensor  # [tokens, input_size]
    wanted: torch.Tensor  # [tokens, output_size]
    position: float


@torch.no_grad()
def least_squares(pairs: Sequence[Pair], terms: BridgePowers) -> Weights:
    """The bridge that maps `before` to `wanted` best at all positions at once; each pair counts
    by its error relative to the spread of what is wanted."""
    size, out = pairs[0].before.shape[1], pairs[0].wanted.shape[1]
    width = terms.weight * size + terms.bias
    gram = torch.zeros(width, width, dtype=torch.float64)
    right = torch.zeros(width, out, dtype=torch.float64)
    for pair in pairs:
        powers = [pair.position**k for k in range(max(terms))]
        x, y = pair.before.double(), pair.wanted.double()
        ones = torch.ones(len(x), 1, dtype=torch.float64)
        inputs = [x * power for power in powers[: terms.weight]]
        inputs += [ones * power for power in powers[: terms.bias]]
        features = torch.cat(inputs, 1)
        importance = 1 / (y - y.mean(0)).pow(2).sum()
        gram += importance * features.T @ features
        right += importance * features.T @ y
    # terms that one position cannot tell apart share the work: the ridge makes it solvable
    ridge = _RIDGE * gram.diagonal()[:size].mean() * torch.eye(width, dtype=torch.float64)
    solution = torch.linalg.solve(gram + ridge, right).float()  # [width, out]
    weight, bias = solution[: terms.weight * size], solution[terms.weight * size :]
    return {
        "weight": weight.view(terms.weight, size, out).transpose(1, 2).contiguous(),
        "bias": bias.contiguous(),
    }


@torch.no_grad()
def pairs_of(
    front: Sequence[TwinLayer],
    back: Sequence[TwinLayer],
    bridges: dict[Cut, BridgeFunction],
    windows: torch.Tensor,  # [windows, tokens] ids
) -> list[Pair]:
    """Paired hidden states of every cut."""
    ours, theirs = (_states(layers, windows) for layers in (front, back))
    return [
        Pair(ours[cut.front], theirs[cut.back], function.position)
        for cut, function in bridges.items()
    ]


def _states(layers: Sequence[TwinLayer], windows: torch.Tensor) -> list[torch.Tensor]:
    outputs = zip(*(hidden_states(layers[:-1], ids) for ids in batches(windows)), strict=True)
    return [torch.cat(parts).flatten(0, 1) for parts in outputs]


def train_bridge(
    front: Sequence[TwinLayer],
    back: Sequence[TwinLayer],
    bridges: dict[Cut, BridgeFunction],
    weights: Weights,
    windows: torch.Tensor,  # [windows, tokens] ids
    schedule: TrainingSchedule,
    task: str,
    checkpoint: Path | None,
    report: Report,
) -> Weights:
    """The bridge after training; each step is at one of the cuts, in turn. Everything else is
    frozen; the teacher is the back model, whole."""
    trained = {name: w.clone().requires_grad_() for name, w in weights.items()}
    cuts = list(bridges)

    def loss_of(ids: torch.Tensor, step: int) -> torch.Tensor:
        cut = cuts[step % len(cuts)]
        with torch.no_grad():
            before = run_layers(front[: cut.front + 1], ids)
            wanted = run_layers(back, ids)
        bridge = TwinLayer(bridges[cut], trained)
        return divergence(run_layers([bridge, *back[cut.back + 1 :]], before), wanted)

    train(trained, loss_of, windows, schedule, task, checkpoint, report)
    return {name: w.detach() for name, w in trained.items()}
