"""What a training needs to go on after a stop: tensors, optimiser states and the step, in one
safetensors file that is replaced whole."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from blockllm.errors import ZooError


def save_state(
    path: Path,
    trained: Mapping[str, torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    task: str,
) -> None:
    """Write everything; `task` says what is trained, so that nothing else resumes from it."""
    held = {f"trained/{name}": tensor.detach() for name, tensor in trained.items()}
    for number, optimizer in enumerate(optimizers):
        for index, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                held[f"state/{number}/{index}/{key}"] = torch.as_tensor(value)
    temporary = path.with_suffix(".partial")
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in held.items()}
    save_file(contiguous, temporary, {"step": str(step), "task": task})
    os.replace(temporary, path)


def load_state(
    path: Path,
    trained: Mapping[str, torch.Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    task: str,
) -> int:
    """Fill tensors and optimisers in place and return the step reached; 0 if there is no file.

    Raises ZooError if the file is damaged or belongs to another task.
    """
    if not path.exists():
        return 0
    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts.get("task") != task:
            raise ZooError(f"{path}: a checkpoint of another training; remove it to start anew")
        with torch.no_grad():
            for name, tensor in trained.items():
                tensor.copy_(held[f"trained/{name}"])
        for number, optimizer in enumerate(optimizers):
            _fill(optimizer, f"state/{number}/", held)
        return int(facts["step"])
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ZooError(f"{path}: not a checkpoint of this training: {error}") from error


def _fill(optimizer: torch.optim.Optimizer, prefix: str, held: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in held.items():
        if name.startswith(prefix):
            index, key = name.removeprefix(prefix).split("/")
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
