"""Drive an engine from a test: submit, step until done, collect what came out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pytest

from blockllm.config import EngineSettings
from blockllm.core import Finish, Request, Sampling, TokenLogprobs
from blockllm.engine import Engine
from blockllm.engine.scheduler import Scheduler
from blockllm.errors import OutOfMemory
from blockllm.zoo import Zoo

Scheduler.checks_plans = True


@dataclass
class Answer:
    """Everything the engine said about one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish: Finish | None = None
    cached_tokens: int = 0
    error: str | None = None


def greedy(max_tokens: int, **options: object) -> Sampling:
    """Greedy sampling that runs to its length."""
    return Sampling(max_tokens=max_tokens, temperature=0.0, ignore_eos=True, **options)  # type: ignore[arg-type]


def request(
    name: str, model: str, prompt: Sequence[int], sampling: Sampling, **more: str | bool
) -> Request:
    return Request(id=name, model=model, prompt=tuple(prompt), sampling=sampling, **more)  # type: ignore[arg-type]


def step(engine: Engine, answers: dict[str, Answer]) -> None:
    """One turn; its events are added to `answers`."""
    for event in engine.step():
        answer = answers.setdefault(event.request, Answer())
        if event.token is not None:
            answer.tokens.append(event.token)
        if event.logprobs is not None:
            answer.logprobs.append(event.logprobs)
        answer.cached_tokens = answer.cached_tokens or event.cached_tokens
        answer.finish = event.finish or answer.finish
        answer.error = event.error or answer.error


def run(engine: Engine, requests: Iterable[Request]) -> dict[str, Answer]:
    """Submit all at once and step until nothing is left; the books must balance afterwards."""
    answers: dict[str, Answer] = {}
    for one in requests:
        engine.submit(one)
    while engine.has_work:
        step(engine, answers)
    engine.check_books()
    return answers


def least_memory(zoo: Zoo, models: Sequence[str] | None = None) -> str:
    """The smallest budget the engine accepts for these models; it says so itself."""
    with pytest.raises(OutOfMemory) as caught:
        Engine(zoo, models, settings(memory="1KiB"))
    found = re.search(r"Raise --memory to (\S+)", str(caught.value))
    assert found
    return found[1]


def settings(**values: object) -> EngineSettings:
    """Small deterministic engine settings for tests."""
    defaults: dict[str, object] = {
        "device": "cpu",
        "memory": "64MiB",
        "dtype": "float32",
        "max_sequences": 8,
        "max_turn_seconds": 0.0,  # how long a turn takes must not decide what is in the next
    }
    return EngineSettings(**{**defaults, **values})  # type: ignore[arg-type]
