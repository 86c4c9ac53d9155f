"""Which rows keep their bits: what seeded sampling may rely on (docs/oracle.md)."""

from __future__ import annotations

import pytest

from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import Answer, least_memory, request, run, settings
from tests.engine.conftest import MODELS

SEEDED = Sampling(max_tokens=24, temperature=0.9, seed=5, logprobs=4, ignore_eos=True)
ROUNDING = 1e-4


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


@pytest.mark.parametrize("rows", [7, 35])  # both leave a last chunk of two rows
def test_chunks_of_several_rows_change_no_bit(zoo: Zoo, alone: dict[str, Answer], rows: int):
    for name in MODELS:
        chunked, _ = answers(zoo, [name], max_rows=rows, max_sequences=4)
        assert chunked[name].logprobs == alone[name].logprobs


def test_rows_computed_again_differ_by_rounding_alone(zoo: Zoo, alone: dict[str, Answer]):
    few = least_memory(zoo, MODELS)
    together, preemptions = answers(zoo, MODELS, memory=few, page_size=4)
    assert preemptions > 0
    for name in MODELS:
        for token, own, there in zip(
            alone[name].tokens, alone[name].logprobs, together[name].logprobs, strict=True
        ):
            assert own.chosen == pytest.approx(there.chosen, abs=ROUNDING), (name, token)
