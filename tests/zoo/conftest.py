"""Tiny checkpoints and empty zoos."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

from blockllm.core import Tensor
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint

settings.register_profile(
    "busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("busy machine")


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo(tmp_path / "zoo")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of four layers with tokenizer files; tests must not change it."""
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", tokenizer=True)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with tied embeddings; tests must not change it."""
    path = tmp_path_factory.mktemp("tied")
    return make_checkpoint(path, "llama", tie_word_embeddings=True, num_hidden_layers=2)


def read_tensor(zoo: Zoo, tensor: Tensor) -> bytes:
    """A stored tensor's bytes, as an engine finds them."""
    with zoo.pack_path(tensor.pack).open("rb") as file:
        file.seek(tensor.offset)
        return file.read(tensor.nbytes)


def saved_tensors(folder: Path) -> dict[str, bytes]:
    """Name → bytes of every tensor of a checkpoint, read by the safetensors package."""
    import torch
    from safetensors.torch import load_file

    found: dict[str, bytes] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            found[name] = tensor.contiguous().view(torch.uint8).numpy().tobytes()
    return found


def contents(root: Path) -> dict[str, Any]:
    """Everything in a zoo that must not change when an operation fails."""
    if not root.exists():
        return {}
    files = {}
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix in (".pack", ".json", ".jinja"):
            status = path.stat()
            files[str(path)] = (status.st_ino, status.st_mtime_ns, path.read_bytes())
    leftovers = list((root / "tmp").iterdir())
    zoo = Zoo(root)
    return {"files": files, "tmp": leftovers, "cards": zoo.cards(), "chains": zoo.chains()}
