"""The demo family as int8 blocks: at most one percent lost, the same answers in any company."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.cli.measure import take_measurement
from blockllm.engine import Engine
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.zoo import Zoo
from tests.demo.test_family import SCORES, encode
from tests.driver import greedy, request, run, settings
from tools.demo import FAMILY, MODELS

pytestmark = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")
PROMPTS = ["def ", "import socket", "class Node:\n    ", "# A thread pool that", "for x in"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Every model of the family, exact and as `<name>-int8`."""
    zoo = Zoo(tmp_path_factory.mktemp("int8") / "zoo")
    for name, base in MODELS.items():
        zoo.add(name, FAMILY / name, base=base)
        if base is None:
            zoo.add(f"{name}-int8", FAMILY / name, format="int8")
        else:
            zoo.add(f"{name}-int8", FAMILY / name, base=f"{base}-int8")
    return zoo


@pytest.mark.parametrize("name", list(MODELS))
def test_int8_costs_at_most_one_percent_of_perplexity(zoo: Zoo, name: str) -> None:
    domain = SCORES["domain_of"].get(name, "general")
    text = Path(FAMILY / "heldout" / f"{domain}.txt").read_bytes()
    found = take_measurement(zoo, f"{name}-int8", name, text, window=512)
    print(found)
    assert found.rise <= 0.01
    assert 0 < found.kl < 0.01
    assert found.agreement > 0.95


def test_a_batch_does_not_change_a_bit(zoo: Zoo) -> None:
    """Log-probabilities, not only tokens: alone and beside twenty-four others."""
    models = [f"{name}-int8" for name in MODELS]
    engine = Engine(zoo, models, settings(memory="256MiB", prefix_cache=False))
    requests = [
        request(f"{model}/{i}", model, [0, *encode(text)], greedy(12, logprobs=1))
        for model in models
        for i, text in enumerate(PROMPTS)
    ]
    together = run(engine, requests)
    for one in requests[::4]:
        alone = run(engine, [one])[one.id]
        assert alone.tokens == together[one.id].tokens
        assert alone.logprobs == together[one.id].logprobs
