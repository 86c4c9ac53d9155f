"""Windows in some layers: greedy tokens equal the reference's for every spelling of a family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint
from tests.oracle.reference import generate, load

FULL, SLIDING = "full_attention", "sliding_attention"
MIXED = [SLIDING, FULL, SLIDING, FULL]
USED = {"use_sliding_window": True, "sliding_window": 5}
PROMPT = [(7 * i * i + 5 * i) % 96 for i in range(20)]
NEW_TOKENS = 16

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral, by type": ("mistral", {"sliding_window": 5, "layer_types": MIXED}),
    "mistral, types of old files": (
        "mistral", {"sliding_window": 5, "layer_types": ["attention", SLIDING, SLIDING, FULL]}
    ),
    "mistral, types null": ("mistral", {"sliding_window": 5, "layer_types": None}),
    "ministral": (
        "mistral", {"model_type": "ministral", "sliding_window": 5, "layer_types": MIXED}
    ),
    "ministral without types": ("mistral", {"model_type": "ministral", "sliding_window": 5}),
    "qwen2, by type": ("qwen2", {**USED, "layer_types": MIXED}),
    "qwen2, upper layers": ("qwen2", {**USED, "layer_types": None, "max_window_layers": 2}),
    "qwen2, window null": ("qwen2", {**USED, "sliding_window": None, "layer_types": [FULL] * 4}),
    "qwen3, by type": ("qwen3", {**USED, "layer_types": MIXED}),
    "llama, all full": ("llama", {"layer_types": [FULL] * 4}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_windows_in_some_layers(tmp_path: Path, case: str) -> None:
    family, more = CASES[case]
    folder = make_checkpoint(tmp_path / "model", family, seed=3)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **more}))
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("model", folder)
    answers = run(
        Engine(zoo, None, settings()), [request("r", "model", PROMPT, greedy(NEW_TOKENS))]
    )
    assert answers["r"].tokens == generate(load(folder), PROMPT, NEW_TOKENS).tokens
