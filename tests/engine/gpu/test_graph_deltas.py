"""Hops that were captured for one model are replayed for others: each gets its own deltas, and
virtual tokens are computed eagerly."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from blockllm.engine import Engine
from blockllm.engine import build as engine_setup
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.engine.gpu.test_engine_gpu import FakeCapture, make_graph_executor, through_triton
from tests.engine.test_virtual import prefix_of, prompt_of
from tests.makers import make_checkpoint, make_lora

MODELS = ["base", "lora", "prefix", "prompt"]
PROMPT = [(i * 37 + 11) % 96 for i in range(6)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root: Path = tmp_path_factory.mktemp("graphs")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / "base", seed=1, num_hidden_layers=2)
    zoo.add("base", base)
    zoo.add("lora", make_lora(base, root / "lora", target_modules="all-linear"), base="base")
    for name, targets in {
        "prefix": prefix_of(zoo, "base", 0, 5),
        "prompt": prompt_of(zoo, "base", 0, 5),
    }.items():
        zoo.assemble(name, "base", zoo.layers("base"), targets=targets, parent="base")
    return zoo


def answers(zoo: Zoo) -> list[list[int]]:
    """One model after the other: all their hops of one row have the same shape."""
    engine = Engine(zoo, MODELS, settings(device="auto", page_size=4))
    asked = [request(m, m, PROMPT, greedy(4)) for m in MODELS]
    return [run(engine, [one])[one.id].tokens for one in asked]


@pytest.mark.skipif(torch.cuda.is_available(), reason="stands in for CUDA graphs")
def test_a_graph_serves_models_that_it_was_not_captured_for(
    shared: Zoo, kernels_on: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    through_triton(monkeypatch)
    expected = answers(shared)
    assert len({tuple(tokens) for tokens in expected}) == len(MODELS)
    capture = FakeCapture()
    monkeypatch.setattr(engine_setup, "Executor", make_graph_executor(capture))
    assert answers(shared) == expected
    assert (capture.captured, capture.replayed) == (1, 3 * len(MODELS))
