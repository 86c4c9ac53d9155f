"""`batching = "models"`: weights are shared, every turn belongs to one model, and it is fair."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import greedy, least_memory, request, run, settings
from tests.makers import make_checkpoint

MODELS = ["base", "upper"]
PROMPT = [(i * 37 + 11) % 96 for i in range(20)]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root: Path = tmp_path_factory.mktemp("pair")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / "base", seed=1)
    make_checkpoint(root / "upper", seed=2, copy_layers_from=base, copied_layers=(0, 1, 2))
    for name in MODELS:
        zoo.add(name, root / name)
    return zoo


def answers(zoo: Zoo, **values: object) -> tuple[dict[str, list[int]], Engine]:
    engine = Engine(zoo, MODELS, settings(prefix_cache=False, **values))
    requests = [
        request(f"{model}{i}", model, PROMPT[i:], greedy(6)) for i in range(3) for model in MODELS
    ]
    return {name: answer.tokens for name, answer in run(engine, requests).items()}, engine


def test_tokens_are_equal_and_batches_hold_one_model(zoo: Zoo) -> None:
    expected, blocks = answers(zoo)
    found, models = answers(zoo, batching="models")
    assert found == expected
    assert models.stats().turns == 2 * blocks.stats().turns
    assert models.stats().weight_bytes == blocks.stats().weight_bytes
    shared = [span for span in models.stats().spans if len(span.models) == 2]
    assert shared and all(span.hops == models.stats().turns for span in shared)


def test_a_tight_pool_still_finishes(zoo: Zoo) -> None:
    expected, _ = answers(zoo)
    found, engine = answers(zoo, batching="models", memory=least_memory(zoo, MODELS), page_size=4)
    assert found == expected
    assert engine.stats().num_running == 0
