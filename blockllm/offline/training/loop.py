"""One loop for every short training: fixed batches, a warm-up and a cosine, checkpoints, resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from blockllm.offline.training.checkpoint import load_state, save_state

LossOf = Callable[[torch.Tensor, int], torch.Tensor]  # ids [rows, tokens], step → scalar
Report = Callable[[int, int, float], None]  # steps done, steps in all, mean loss


class TrainingSchedule(NamedTuple):
    """How long and how fast to train; equal schedules repeat each other."""

    steps: int
    rate: float
    rows: int = 4  # windows per step
    every: int = 20  # steps between checkpoints
    seed: int = 0


def train(
    trained: Mapping[str, torch.Tensor],
    loss_of: LossOf,
    windows: torch.Tensor,  # [windows, tokens] ids
    schedule: TrainingSchedule,
    task: str,
    checkpoint: Path | None = None,
    report: Report = lambda done, steps, loss: None,
) -> float:
    """Train the tensors in place with AdamW and return the last mean loss.

    With a `checkpoint` file, a training that was stopped goes on from it; the file is removed at
    the end. Raises ZooError if the file belongs to another `task`.
    """
    if not schedule.steps:
        return math.nan
    optimizer = torch.optim.AdamW(trained.values(), lr=schedule.rate, weight_decay=0.0)
    first = load_state(checkpoint, trained, [optimizer], task) if checkpoint else 0
    mean = math.nan
    for step in range(first, schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * rate_factor(step, schedule.steps)
        loss = loss_of(windows[batch_rows(len(windows), schedule, step)], step)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=list(trained.values()))
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        mean = loss.item() if math.isnan(mean) else 0.9 * mean + 0.1 * loss.item()
        report(step + 1, schedule.steps, mean)
        if checkpoint and (step + 1) % schedule.every == 0:
            save_state(checkpoint, trained, [optimizer], step + 1, task)
    if checkpoint:
        checkpoint.unlink(missing_ok=True)
    return mean


def batch_rows(num_windows: int, schedule: TrainingSchedule, step: int) -> torch.Tensor:
    """Which windows a step takes: every epoch has its own order. [rows]"""
    chosen = []
    for index in range(step * schedule.rows, (step + 1) * schedule.rows):
        epoch, place = divmod(index, num_windows)
        generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
        chosen.append(int(torch.randperm(num_windows, generator=generator)[place]))
    return torch.tensor(chosen)


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a fiftieth."""
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
