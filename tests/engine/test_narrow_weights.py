"""Weights of 16 bits keep them in memory, and answer bit for bit as the same weights in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.engine import Engine
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint, make_lora

pytestmark = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")
PROMPT = tuple(range(3, 90))


def widen(narrow: Path, wide: Path) -> None:
    """The same checkpoint with all weights in fp32."""
    wide.mkdir()
    (wide / "config.json").write_text((narrow / "config.json").read_text())
    tensors = load_file(narrow / "model.safetensors")
    wider = {name: tensor.float() for name, tensor in tensors.items()}
    save_file(wider, wide / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [False, True])
def test_answers_are_those_of_the_widened_model(
    tmp_path: Path, dtype: torch.dtype, tied: bool
) -> None:
    zoo = Zoo(tmp_path / "zoo")
    shape = {"hidden_size": 128, "intermediate_size": 192, "tie_word_embeddings": tied}
    narrow = make_checkpoint(tmp_path / "narrow", dtype=dtype, **shape)
    widen(narrow, tmp_path / "wide")
    make_lora(narrow, tmp_path / "adapter", r=3, target_modules="all-linear")
    engines = []
    for name in ("narrow", "wide"):
        zoo.add(name, tmp_path / name)
        zoo.add(f"{name}-tuned", tmp_path / "adapter", base=name)
        models = [name, f"{name}-tuned"]
        engine = Engine(zoo, models, settings(dtype="float32"))
        requests = [
            request(f"{i}", model, PROMPT[: 30 + 20 * i], greedy(8, logprobs=3))
            for i, model in enumerate(models * 2)
        ]
        answers = run(engine, requests)
        engines.append((engine, [(a.tokens, a.logprobs) for _, a in sorted(answers.items())]))
    (engine, got), (wide_engine, expected) = engines
    assert got == expected
    weights, wide_weights = engine.stats().weight_bytes, wide_engine.stats().weight_bytes
    adapter = 4 * sum(
        t.numel() for t in load_file(tmp_path / "adapter/adapter_model.safetensors").values()
    )
    norms = 2 * sum(
        t.numel() for t in load_file(narrow / "model.safetensors").values() if t.ndim == 1
    )
    assert weights - adapter - norms == (wide_weights - adapter) / 2
