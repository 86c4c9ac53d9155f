"""One training loop for the base and for every fine-tune."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from blockllm.offline.training.checkpoint import load_state, save_state


@dataclass(frozen=True)
class Recipe:
    """How long and how fast one model trains; counts are fixed so that a rerun is the same."""

    steps: int
    rate: float
    matrix_rate: float = 0.0
    rows: int = 8
    weight_decay: float = 0.1
    warmup: float = 0.05
    seed: int = 0
    horizon: int = 0


@dataclass(frozen=True)
class Pieces:
    """A training may be paused: after how many seconds, and where the files to go on from lie."""

    folder: Path
    seconds: float = math.inf

    def path(self, name: str) -> Path:
        """The paused training of one model; there while it is paused."""
        return self.folder / f"{name}-paused.safetensors"


class Paused(Exception):
    """The training is not done after these seconds; run it again to go on."""

    def __init__(self, progress: str, seconds: float) -> None:
        super().__init__(progress)
        self.seconds = seconds


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, in fp32: fewer steps than AdamW for the layers' matrices.

    The one in PyTorch works in bf16, which a processor without bf16 units runs slowly.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update same-shaped matrices together, as one batched product each."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                shapes.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in shapes.items():
                directions = orthogonalize(torch.stack([self._momentum(p) for p in parameters]))
                scale = max(1.0, shape[0] / shape[1]) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction, alpha=-group["lr"] * scale)

    def _momentum(self, parameter: nn.Parameter) -> torch.Tensor:
        state = self.state[parameter]
        if "average" not in state:
            state["average"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["average"].lerp_(parameter.grad, 0.05)
        return parameter.grad.lerp(state["average"], 0.95)


def orthogonalize(matrices: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Newton-Schulz iteration towards the nearest orthogonal matrices."""
    wide = matrices.shape[1] <= matrices.shape[2]
    result: torch.Tensor = matrices if wide else matrices.mT
    result = result / (result.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        product = result @ result.mT
        result = 3.4445 * result + (-4.7750 * product + 2.0315 * product @ product) @ result
    return result if wide else result.mT


def make_optimizers(model: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for what is trainable; with a matrix rate, Muon for the layers' matrices."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    with_muon = {
        name for name, p in trainable if recipe.matrix_rate and "layers" in name and p.ndim == 2
    }
    decayed = [p for name, p in trainable if name not in with_muon and p.ndim == 2]
    plain = [p for _, p in trainable if p.ndim != 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.95), fused=True))
    if with_muon:
        matrices = [p for name, p in trainable if name in with_muon]
        optimizers.append(Muon(matrices, recipe.matrix_rate, recipe.weight_decay))
    return optimizers


def rate_factor(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to a fiftieth at the horizon: by default the last step."""
    horizon = recipe.horizon or recipe.steps
    warmup = max(1, int(horizon * recipe.warmup))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, horizon - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


def next_token_loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of every id but the first of each row."""
    logits: torch.Tensor = model(input_ids=rows[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def set_rates(optimizers: list[torch.optim.Optimizer], factor: float) -> None:
    """Scale every group's first rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def train(
    name: str,
    model: nn.Module,
    source: Iterator[torch.Tensor],
    recipe: Recipe,
    pieces: Pieces,
) -> float:
    """Train in place and return the seconds used. Raises Paused once a piece's time is up; the
    next call goes on from there.
    """
    torch.manual_seed(recipe.seed)
    optimizers = make_optimizers(model, recipe)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    trainable = list(named.values())
    first = load_state(pieces.path(name), named, optimizers, name)
    for _ in range(first):
        next(source)
    model.train()
    begin, average = time.perf_counter(), 0.0
    for step in range(first, recipe.steps):
        if time.perf_counter() - begin > pieces.seconds:
            save_state(pieces.path(name), named, optimizers, step, name)
            progress = f"{name}: paused after {step} of {recipe.steps} steps"
            raise Paused(progress, time.perf_counter() - begin)
        set_rates(optimizers, rate_factor(step, recipe))
        rows = next(source)
        loss = next_token_loss(model, rows)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(trainable, 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average = 0.95 * average + 0.05 * loss.item() if average else loss.item()
        if (step + 1) % 20 == 0 or step + 1 == recipe.steps:
            speed = rows.numel() * (step + 1 - first) / (time.perf_counter() - begin)
            progress = f"step {step + 1}/{recipe.steps}"
            print(f"{name}: {progress} loss {average:.3f} {speed:.0f} tokens/s", flush=True)
    model.eval()
    pieces.path(name).unlink(missing_ok=True)
    return time.perf_counter() - begin
