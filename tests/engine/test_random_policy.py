"""Whatever a policy decides, the tokens are those of one request after the other, bit for bit."""

from __future__ import annotations

import random
from typing import Any

import pytest

from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.engine.policies import Layered
from blockllm.zoo import Zoo
from tests.driver import Answer, least_memory, request, run, settings, step
from tools.campaigns.random_policy import RandomPolicy

MODELS = ["base", "upper", "other", "lora-all", "lora-upper", "lonely"]
SEEDS = 12


def questions(seed: int) -> list[Request]:
    """Prompts with and without common beginnings, greedy and drawn."""
    chosen = random.Random(seed)
    asked = []
    for index in range(10):
        model = chosen.choice(MODELS)
        common = [7, 9, 3, 11, 4, 8, 2, 5][: chosen.choice((0, 8))]
        prompt = common + [chosen.randrange(96) for _ in range(chosen.randint(1, 24))]
        sampling = Sampling(
            max_tokens=chosen.randint(1, 8),
            temperature=chosen.choice((0.0, 1.3)),
            seed=chosen.randrange(1000),
            ignore_eos=True,
        )
        asked.append(request(str(index), model, prompt, sampling, offline=index % 3 == 0))
    return asked


def expected(zoo: Zoo, asked: list[Request]) -> dict[str, list[int]]:
    """One after the other."""
    engine = Engine(zoo, MODELS, settings(prefix_cache=False))
    return {one.id: run(engine, [one])[one.id].tokens for one in asked}


def play(engine: Engine, asked: list[Request], seed: int) -> tuple[dict[str, list[int]], set[str]]:
    """Tokens of what was not cancelled, and what was."""
    chosen, answers, cancelled = random.Random(seed), dict[str, Answer](), set[str]()
    for one in asked:
        engine.submit(one)
    while engine.has_work:
        step(engine, answers)
        if chosen.random() < 0.02:
            gone = chosen.choice(asked).id
            engine.cancel(gone)
            cancelled.add(gone)
    return {n: answer.tokens for n, answer in answers.items() if n not in cancelled}, cancelled


@pytest.mark.parametrize("overlap", ["off", "on"])
@pytest.mark.parametrize("cut", ["layers", "lazy"])
def test_any_legal_plan_gives_the_same_tokens(zoo: Zoo, cut: str, overlap: str) -> None:
    memory = least_memory(zoo, MODELS)
    for seed in range(SEEDS):
        asked = questions(seed)
        right = expected(zoo, asked)
        tight = settings(cut=cut, overlap=overlap, memory=memory, page_size=4, max_sequences=6)
        engine = Engine(zoo, MODELS, tight if seed % 2 else settings(cut=cut, overlap=overlap))
        engine._scheduler.policy = RandomPolicy(seed)
        found, cancelled = play(engine, asked, seed)
        engine.check_books()
        assert found == {name: right[name] for name in found}, f"seed {seed}"
        assert len(found) >= len(asked) - len(cancelled)


def test_any_legal_plan_in_lanes_gives_the_same_tokens(zoo: Zoo) -> None:
    """Batches beside each other, on threads of their own; cancels while they are computed."""
    memory = least_memory(zoo, MODELS)
    for seed in range(SEEDS):
        asked = questions(seed)
        right = expected(zoo, asked)
        options: dict[str, Any] = {"memory": memory, "max_sequences": 6} if seed % 2 else {}
        engine = Engine(zoo, MODELS, settings(batching="lanes", threads=3, page_size=4, **options))
        if seed % 3:
            engine._scheduler.policy = RandomPolicy(seed)
        found, cancelled = play(engine, asked, seed)
        engine.check_books()
        assert found == {name: right[name] for name in found}, f"seed {seed}"
        assert len(found) >= len(asked) - len(cancelled)


def test_prompts_that_go_layer_by_layer_answer_as_before(zoo: Zoo) -> None:
    for seed in range(4):
        asked = questions(seed)
        engine = Engine(zoo, MODELS, settings(batching="layered", max_rows=8))
        assert isinstance(engine._scheduler.policy._inner, Layered)
        found = {name: answer.tokens for name, answer in run(engine, asked).items()}
        assert found == expected(zoo, asked)
