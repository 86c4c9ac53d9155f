"""A small family in one zoo: a base, fine-tunes that keep its lower layers, adapters."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora

MODELS = ["base", "upper", "other", "lora-all", "lora-upper", "lonely"]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """`upper` keeps layers 0-2 of `base`, `other` 0-1; `lonely` shares nothing and has another
    KV shape; `lora-upper` touches layer 3 only."""
    root: Path = tmp_path_factory.mktemp("family")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / "base", seed=1)
    make_checkpoint(root / "upper", seed=2, copy_layers_from=base, copied_layers=(0, 1, 2))
    make_checkpoint(root / "other", seed=3, copy_layers_from=base, copied_layers=(0, 1))
    make_checkpoint(root / "lonely", "qwen3", seed=4, head_dim=16, num_hidden_layers=3)
    for name in ("base", "upper", "other", "lonely"):
        zoo.add(name, root / name)
    make_lora(base, root / "lora-all", r=3, target_modules="all-linear")
    make_lora(base, root / "lora-upper", r=2, layers_to_transform=[3])
    for name in ("lora-all", "lora-upper"):
        zoo.add(name, root / name, base="base")
    return zoo
