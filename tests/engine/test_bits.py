"""Which rows keep their bits: what seeded sampling may rely on (docs/oracle.md)."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import Answer, least_memory, request, run, settings
from tests.engine.conftest import MODELS
from tests.makers import make_checkpoint

SEEDED = Sampling(max_tokens=24, temperature=0.9, seed=5, logprobs=4, ignore_eos=True)

LONG = {"num_hidden_layers": 2, "max_position_embeddings": 512}


def asked(model: str) -> Request:
    shift = MODELS.index(model)
    return request(model, model, [(i * i * 5 + shift) % 96 for i in range(37)], SEEDED)


def answers(zoo: Zoo, names: list[str], **options: object) -> tuple[dict[str, Answer], int]:
    """Of the models' requests, all at once, and how many sequences were preempted."""
    engine = Engine(zoo, None, settings(prefix_cache=False, **options))
    return run(engine, [asked(name) for name in names]), engine.stats().preemptions


@pytest.fixture(scope="module")
def alone(zoo: Zoo) -> dict[str, Answer]:
    return {name: answers(zoo, [name])[0][name] for name in MODELS}


def test_company_changes_no_bit(zoo: Zoo, alone: dict[str, Answer]):
    together, preemptions = answers(zoo, MODELS)
    assert preemptions == 0
    for name in MODELS:
        assert together[name].tokens == alone[name].tokens
        assert together[name].logprobs == alone[name].logprobs  # as floats, not nearly


@pytest.mark.parametrize("rows", [4, 7, 35])  # the first leaves a last chunk of one row
def test_chunks_change_no_bit(zoo: Zoo, alone: dict[str, Answer], rows: int):
    for name in MODELS:
        chunked, _ = answers(zoo, [name], max_rows=rows, max_sequences=4)
        assert chunked[name].logprobs == alone[name].logprobs


def test_rows_computed_again_keep_their_bits(zoo: Zoo):
    few = least_memory(zoo, MODELS)
    together, preemptions = answers(zoo, MODELS, memory=few, page_size=4)
    assert preemptions > 0
    for name in MODELS:
        alone = answers(zoo, [name], page_size=4)[0][name]
        assert together[name].logprobs == alone.logprobs


def test_a_window_keeps_its_bits_in_chunks(tmp_path: Path):
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("window", make_checkpoint(tmp_path / "window", "mistral", sliding_window=70, **LONG))
    prompt = [(i * i * 5) % 96 for i in range(300)]
    wanted = request("window", "window", prompt, SEEDED)
    found = [
        run(Engine(zoo, None, settings(max_rows=rows, max_sequences=1)), [wanted])["window"]
        for rows in (512, 37, 1)
    ]
    assert found[0].logprobs == found[1].logprobs == found[2].logprobs
