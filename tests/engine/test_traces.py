"""Random traces of many tenants and models: every answer equals its answer alone.

A state machine submits, cancels and steps an engine whose pages are far too few; whatever is
preempted, shared, evicted or chunked on the way must not show in any token, whether turns wait for
each other or overlap.
"""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from blockllm.config import TenantSettings
from blockllm.core import Sampling
from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, least_memory, request, run, settings, step
from tests.engine.conftest import MODELS

PROMPTS = [[(i * i * 5 + seed * (i // 12)) % 96 for i in range(6 + 14 * seed)] for seed in range(5)]


def sampling_of(kind: int) -> Sampling:
    if kind == 0:
        return greedy(40)
    if kind == 1:
        return Sampling(max_tokens=30, temperature=0.8, top_p=0.8, seed=3, ignore_eos=True)
    return greedy(20, repetition_penalty=1.2, presence_penalty=0.1)


class Trace(RuleBasedStateMachine):
    """Drives one engine; the answers alone are computed once per distinct request."""

    zoo: ClassVar[Zoo]
    alone: ClassVar[dict[tuple[str, int, int], list[int]]] = {}
    preemptions: ClassVar[int] = 0
    memory: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, tuple[str, int, int]] = {}
        self.cancelled: set[str] = set()
        self.answers: dict[str, Answer] = {}

    @initialize(overlap=st.sampled_from(["on", "off"]))
    def start(self, overlap: str) -> None:
        tight = {"memory": self.memory, "max_rows": 24, "max_sequences": 12, "page_size": 4}
        tight["tenants"] = {"a": TenantSettings(weight=2.0), "b": TenantSettings(max_rows=2)}
        self.engine = Engine(self.zoo, None, settings(overlap=overlap, **tight))

    @rule(
        model=st.sampled_from(MODELS),
        prompt=st.integers(0, len(PROMPTS) - 1),
        kind=st.integers(0, 2),
        salt=st.sampled_from(["", "tenant"]),
        tenant=st.sampled_from("abc"),
        offline=st.booleans(),
    )
    def submit(
        self, model: str, prompt: int, kind: int, salt: str, tenant: str, offline: bool
    ) -> None:
        name = f"{len(self.asked)}"
        self.asked[name] = (model, prompt, kind)
        more = {"salt": salt, "tenant": tenant, "offline": offline}
        one = request(name, model, PROMPTS[prompt], sampling_of(kind), **more)
        self.engine.submit(one)

    @rule(which=st.integers(0, 30))
    def cancel(self, which: int) -> None:
        name = f"{which}"
        if self.answers.get(name, Answer()).finish is None:
            self.engine.cancel(name)
            self.cancelled.add(name)

    @rule(turns=st.integers(1, 6))
    def step(self, turns: int) -> None:
        for _ in range(turns):
            step(self.engine, self.answers)

    @invariant()
    def books_balance(self) -> None:
        self.engine.check_books()

    @invariant()
    def quotas_hold(self) -> None:
        scheduler = self.engine._scheduler
        for lines in (scheduler._waiting, scheduler._offline):
            assert lines.tenant("b").num_running <= 2

    def teardown(self) -> None:
        while self.engine.has_work:
            step(self.engine, self.answers)
        self.engine.check_books()
        Trace.preemptions += self.engine.stats().preemptions
        for name, key in self.asked.items():
            if name not in self.cancelled:
                assert self.answers[name].tokens == self.tokens_alone(key), key

    def tokens_alone(self, key: tuple[str, int, int]) -> list[int]:
        if key not in self.alone:
            model, prompt, kind = key
            engine = Engine(self.zoo, [model], settings(prefix_cache=False))
            one = request("r", model, PROMPTS[prompt], sampling_of(kind))
            self.alone[key] = run(engine, [one])["r"].tokens
        return self.alone[key]


@pytest.mark.slow
def test_every_answer_equals_its_answer_alone(zoo: Zoo) -> None:
    Trace.zoo, Trace.memory = zoo, least_memory(zoo)
    run_state_machine_as_test(
        Trace,
        settings=hypothesis_settings(max_examples=20, stateful_step_count=30, deadline=None),
    )
    assert Trace.preemptions > 0, "the pool was not tight enough to test preemption"
