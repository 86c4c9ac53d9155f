"""Turns launched ahead of the tokens before them answer as turns that wait, and leave no trace."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from blockllm.core import Finish, Request, Sampling
from blockllm.engine import Engine
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.run.pending import overlaps
from blockllm.engine.sampling import choose, sample
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, least_memory, request, run, settings, step
from tests.engine.conftest import MODELS
from tests.engine.test_sampling import make_sequence
from tests.makers import make_checkpoint

PROMPT = [(i * 37 + 11) % 96 for i in range(40)]
END = 2  # the models' end-of-text id

SAMPLINGS = {
    "greedy": greedy(12),
    "seeded": Sampling(max_tokens=12, temperature=1.3, seed=4, ignore_eos=True),
    "filtered": Sampling(max_tokens=12, temperature=1.3, top_p=0.8, top_k=30, min_p=0.01, seed=4),
    "penalties": greedy(12, repetition_penalty=1.5, frequency_penalty=0.4, presence_penalty=0.2),
    "logprobs": Sampling(max_tokens=9, temperature=0.9, seed=1, logprobs=3, ignore_eos=True),
    "ends at once": Sampling(max_tokens=9, temperature=0.0, logit_bias={END: 1000.0}),
    "ends late": Sampling(max_tokens=9, temperature=0.0, logit_bias={END: 1000.0}, min_tokens=5),
    "one token": greedy(1),
    "last is end": Sampling(max_tokens=5, temperature=0.0, logit_bias={END: 1000.0}, min_tokens=4),
}


def both(zoo: Zoo, models: list[str] | None, asked: list[Request], **values: Any):
    """The answers and engines of turns that wait and of turns that overlap."""
    engines = [Engine(zoo, models, settings(overlap=how, **values)) for how in ("off", "on")]
    off, on = ({n: vars(a) for n, a in run(engine, asked).items()} for engine in engines)
    for answer in [*off.values(), *on.values()]:
        del answer["cached_tokens"]  # goes by who was there first
    assert on == off
    return on, engines


def rows(engine: Engine) -> int:
    return sum(span.rows for span in engine.stats().spans)


@pytest.mark.parametrize("batching", ["blocks", "models"])
def test_answers_of_all_kinds_and_models_in_one_batch(zoo: Zoo, batching: str) -> None:
    asked = [
        request(f"{model} {name}", model, PROMPT[i : 20 + 2 * i], sampling)
        for i, (name, sampling) in enumerate(SAMPLINGS.items())
        for model in MODELS
    ]
    found, (off, on) = both(zoo, None, asked, batching=batching, max_rows=48, max_sequences=16)
    assert {answer["finish"] for answer in found.values()} == {Finish.STOP, Finish.LENGTH}
    counted = [engine.stats() for engine in (off, on)]
    assert counted[0].generation_tokens == counted[1].generation_tokens
    assert counted[0].prompt_tokens == counted[1].prompt_tokens


def test_vocabularies_of_two_sizes_in_one_batch(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    for seed, size in enumerate((96, 64)):
        zoo.add(f"{size}", make_checkpoint(tmp_path / f"{size}", seed=seed, vocab_size=size))
    asked = [
        request(f"{n} {i}", n, PROMPT[i : i + 1], greedy(9)) for n in zoo.chains() for i in (3, 4)
    ]
    both(zoo, None, asked)


def test_only_an_end_that_nobody_knew_costs_a_row(zoo: Zoo) -> None:
    free, (off, on) = both(zoo, ["base"], [request("r", "base", PROMPT, greedy(12))])
    assert rows(on) == rows(off) and on.stats().turns == off.stats().turns
    stop = free["r"]["tokens"][4]
    asked = [request("r", "base", PROMPT, greedy(12, stop_ids=(stop,)))]
    found, (off, on) = both(zoo, ["base"], asked)
    assert found["r"]["finish"] is Finish.STOP
    assert rows(on) == rows(off) + 1


def test_a_step_tells_what_the_step_before_has_sampled(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings(overlap="on"))
    engine.submit(request("r", "base", PROMPT, greedy(3)))
    told = []
    while engine.has_work:
        told.append(len(engine.step()))
    assert told == [0, 1, 1, 1]
    assert engine.step() == []


def test_pages_are_found_by_tokens_that_were_told(zoo: Zoo) -> None:
    """Later requests that go on behind an answer, also behind one that ended on a stop token."""
    (free,) = run(
        Engine(zoo, ["base"], settings()), [request("r", "base", PROMPT, greedy(20))]
    ).values()
    first = [
        request("whole", "base", PROMPT, greedy(20)),
        request(
            "stopped",
            "base",
            PROMPT[::-1],
            Sampling(9, temperature=0.0, logit_bias={END: 99.0}, min_tokens=6),
        ),
    ]
    for how in ("off", "on"):
        engine = Engine(zoo, ["base"], settings(overlap=how, page_size=4))
        answers = run(engine, first)
        assert answers["whole"].tokens == free.tokens
        for prompt, name in ((PROMPT, "whole"), (PROMPT[::-1], "stopped")):
            text = prompt + answers[name].tokens + [5]
            alone = run(
                Engine(zoo, ["base"], settings(prefix_cache=False)),
                [request("a", "base", text, greedy(6))],
            )
            again = run(engine, [request("a", "base", text, greedy(6))])["a"]
            assert again.tokens == alone["a"].tokens
            # all that was computed: every page but that of the last token
            assert again.cached_tokens == (len(text) - 2) // 4 * 4


def test_preempted_in_flight(zoo: Zoo) -> None:
    prompts = [PROMPT[i:] + PROMPT[:i] for i in range(6)]
    asked = [request(f"{i}", "base", p, greedy(30 + i)) for i, p in enumerate(prompts)]
    tight = {"memory": least_memory(zoo, ["base"]), "page_size": 4, "max_rows": 24}
    _, (off, on) = both(zoo, ["base"], asked, **tight)
    assert off.stats().preemptions and on.stats().preemptions


def test_an_id_may_come_back_while_its_last_token_is_in_flight(zoo: Zoo) -> None:
    engine = Engine(zoo, ["base"], settings(overlap="on"))
    alone = run(engine, [request("r", "base", PROMPT[5:], greedy(6))])["r"].tokens
    for turns in range(4):
        engine.submit(request("r", "base", PROMPT, greedy(6)))
        for _ in range(turns):
            engine.step()
        engine.cancel("r")
        assert run(engine, [request("r", "base", PROMPT[5:], greedy(6))])["r"].tokens == alone


def test_a_choice_made_again_voids_what_was_computed_of_the_first(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With few candidates looked at, the device goes on from tokens that are then revised; the
    CPU's kernel revises nothing."""
    monkeypatch.setattr(choose, "_CANDIDATES", 4)
    sampling = Sampling(max_tokens=20, temperature=1.5, top_p=0.95, seed=8, logprobs=2)
    asked = [request(m, m, PROMPT[:9], sampling) for m in MODELS]
    found, (off, on) = both(zoo, None, asked, page_size=4, kernels="plain")
    assert rows(on) > rows(off) + 20
    monkeypatch.undo()
    plain = run(Engine(zoo, None, settings(kernels="plain")), asked)
    assert {n: a.tokens for n, a in plain.items()} == {n: a["tokens"] for n, a in found.items()}


PLAIN = Kernels(1, built=False)


def test_a_draw_says_which_tokens_it_revised(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.linspace(0, 0.1, 12).repeat(200, 1)
    sequences = [make_sequence(seed=i, top_p=0.9, logprobs=1) for i in range(200)]
    whole = sample(logits.clone(), sequences, PLAIN)
    monkeypatch.setattr(choose, "_CANDIDATES", 3)
    again = sample(logits.clone(), sequences, PLAIN)
    assert [s[:2] for s in again] == [s[:2] for s in whole]
    assert any(s.revised for s in again) and not any(s.revised for s in whole)


def test_auto_overlaps_where_host_and_device_are_two() -> None:
    found = {
        (how, name): overlaps(how, torch.device(name))
        for how in ("auto", "on", "off")
        for name in ("cpu", "cuda")
    }
    assert [pair for pair, does in found.items() if does] == [
        ("auto", "cuda"), ("on", "cpu"), ("on", "cuda"),
    ]  # fmt: skip


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.sampled_from(sorted(SAMPLINGS)), st.integers(1, 39)),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("step"), st.integers(1, 4), st.just(0)),
    ),
    min_size=4,
    max_size=25,
)


@pytest.fixture(scope="module")
def engines(zoo: Zoo) -> tuple[Engine, Engine]:
    """One whose turns wait, and a crowded one whose turns overlap."""
    tight = {"memory": least_memory(zoo, ["upper"]), "page_size": 4, "max_rows": 16}
    return (
        Engine(zoo, ["upper"], settings(prefix_cache=False)),
        Engine(zoo, ["upper"], settings(overlap="on", max_sequences=6, **tight)),
    )


@hypothesis_settings(max_examples=25, deadline=None)
@given(ACTIONS)
def test_any_order_of_events(engines: tuple[Engine, Engine], actions: list[tuple]) -> None:
    alone, crowded = engines
    asked: list[Request] = []
    answers: dict[str, Answer] = {}
    cancelled = set()
    for what, first, second in actions:
        if what == "submit":
            asked.append(request(f"{len(asked)}", "upper", PROMPT[:second], SAMPLINGS[first]))
            crowded.submit(asked[-1])
        elif what == "cancel":
            crowded.cancel(f"{first}")
            cancelled |= {one.id for one in asked if one.id == f"{first}"}
        else:
            for _ in range(first):
                step(crowded, answers)
        crowded.check_books()
    while crowded.has_work:
        step(crowded, answers)
    crowded.check_books()
    for one in asked:
        expected = run(alone, [one])[one.id]
        got = answers.get(one.id, Answer())
        if one.id in cancelled:
            assert got.tokens == expected.tokens[: len(got.tokens)]
        else:
            assert (got.tokens, got.finish) == (expected.tokens, expected.finish)
