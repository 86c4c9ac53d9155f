"""Prefix and prompt tuning: answers equal the reference's, and clients see no virtual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from blockllm.core import LayerFunction, Sampling
from blockllm.engine import Engine
from blockllm.engine.score import Scorer
from blockllm.errors import BadRequest, ContextTooLong, UnsupportedModel
from blockllm.zoo import Zoo
from blockllm.zoo.assemble import AnyTargets, NewTarget
from tests.driver import Answer, greedy, least_memory, request, run, settings
from tests.makers import make_checkpoint
from tests.oracle.reference import cache_of, load, run_behind

VIRTUAL = 21  # more than a page, and no multiple of one
TOKENS = 24
PROMPT = [(i * 37 + 11) % 96 for i in range(40)]
SMALL = {"num_hidden_layers": 2, "max_position_embeddings": 256}
ORIGINAL = 32  # original length of the scaled models
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "base": ("llama", {}),
    "normed": (
        "qwen3",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_theta": 10000.0,
                "rope_type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": ORIGINAL,
            },
        },
    ),
    "dynamic": (
        "llama",
        {
            "max_position_embeddings": ORIGINAL,
            "rope_parameters": {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 8.0},
        },
    ),
    "windowed": ("mistral", {"sliding_window": 48}),
}
MODELS = [f"{base}-{kind}" for base in BASES for kind in ("prefix", "prompt")]
TUNED = ["base-prefix", "base-prompt"]


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prefix_of(zoo: Zoo, base: str, seed: int, count: int = VIRTUAL) -> AnyTargets:
    """Random keys and values of every decoder layer."""
    targets: AnyTargets = {}
    for position, layer in enumerate(zoo.layers(base)):
        if isinstance(layer.function, LayerFunction):
            shape = (count, layer.function.num_kv_heads, layer.function.head_dim)
            parts = {
                "keys": noise(seed + position, *shape),
                "values": noise(seed + 50 + position, *shape),
            }
            targets[position] = {"self_attn": (NewTarget("prefix", parts, {}),)}
    return targets


def prompt_of(zoo: Zoo, base: str, seed: int, count: int = VIRTUAL) -> AnyTargets:
    """Random hidden states behind the embedding."""
    (_, hidden) = zoo.layers(base)[0].tensors["weight"].shape
    rows = 0.3 * noise(seed, count, hidden)
    return {0: {"embed": (NewTarget("prompt", {"rows": rows}, {}),)}}


class Family:
    """The models, and what transformers says about them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.zoo = Zoo(root / "zoo")
        self.targets: dict[str, AnyTargets] = {}
        self._answers: dict[tuple[object, ...], list[int]] = {}
        for seed, (name, (family, config)) in enumerate(BASES.items()):
            self.zoo.add(name, make_checkpoint(root / name, family, seed=seed, **SMALL | config))
            self.tune(f"{name}-prefix", prefix_of(self.zoo, name, 100 * seed))
            self.tune(f"{name}-prompt", prompt_of(self.zoo, name, 100 * seed))

    def tune(self, name: str, targets: AnyTargets) -> None:
        base = name.partition("-")[0]
        self.targets[name] = targets
        self.zoo.assemble(name, base, self.zoo.layers(base), targets=targets, parent=base)

    def start(self, name: str, prompt: Sequence[int]) -> tuple[Any, Any]:
        """A fresh reference model, and its output for the prompt behind its virtual tokens."""
        model = load(self.root / name.partition("-")[0])
        ids = torch.tensor([list(prompt)])
        targets = self.targets.get(name, {})
        if not targets:
            return model, model(input_ids=ids, use_cache=True)
        if 0 in targets:
            (target,) = targets[0]["embed"]
            rows = torch.from_numpy(target.parts["rows"])[None]  # type: ignore[union-attr]
            embedded = torch.cat([rows, model.get_input_embeddings()(ids)], 1)
            return model, model(inputs_embeds=embedded, use_cache=True)
        from transformers import DynamicCache

        cache = DynamicCache()
        for position, modules in targets.items():
            parts = modules["self_attn"][0].parts  # type: ignore[union-attr]
            states = [torch.from_numpy(parts[p]).transpose(0, 1)[None] for p in ("keys", "values")]
            cache.update(*states, position - 1)
        return model, run_behind(cache, model, ids)

    @torch.inference_mode()
    def logprobs(self, name: str, prompt: Sequence[int]) -> torch.Tensor:
        """Of what follows each token of the prompt. [tokens, vocab]"""
        logits: torch.Tensor = self.start(name, prompt)[1].logits[0, -len(prompt) :]
        return logits.log_softmax(-1)

    @torch.inference_mode()
    def answer(
        self,
        name: str,
        prompt: Sequence[int] = PROMPT,
        count: int = TOKENS,
        repetition: float = 1.0,
        frequency: float = 0.0,
    ) -> list[int]:
        """Greedy tokens; penalties on those of prompt and answer, and on those of the answer."""
        key = (name, tuple(prompt), count, repetition, frequency)
        if key not in self._answers:
            model, out = self.start(name, prompt)
            tokens: list[int] = []
            while len(tokens) < count:
                logits = out.logits[0, -1]
                seen = torch.tensor([*prompt, *tokens]).unique()
                kept = logits[seen]
                logits[seen] = torch.where(kept > 0, kept / repetition, kept * repetition)
                for token in tokens:
                    logits[token] -= frequency
                tokens.append(int(logits.argmax()))
                out = run_behind(cache_of(out), model, torch.tensor([tokens[-1:]]))
            self._answers[key] = tokens
        return self._answers[key]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("virtual"))


def ask(engine: Engine, model: str, prompt: Sequence[int] = PROMPT, **more: str) -> Answer:
    return run(engine, [request("r", model, prompt, greedy(TOKENS), **more)])["r"]


def rows_of(engine: Engine) -> int:
    """Rows computed so far, counted at every span."""
    return max(span.rows for span in engine.stats().spans)


@pytest.mark.parametrize("model", MODELS)
def test_scores_equal_the_reference(family: Family, model: str) -> None:
    scorer = Scorer(family.zoo, [model], settings(prefix_cache=False))
    tokens = [(i * 29 + 5) % 96 for i in range(90)]  # more than one piece
    found = torch.cat(list(scorer.distributions(model, tokens)))
    torch.testing.assert_close(found, family.logprobs(model, tokens), atol=1e-4, rtol=0)
    assert scorer.score(model, tokens).shape == (len(tokens) - 1,)


@pytest.mark.parametrize("model", MODELS)
def test_alone(family: Family, model: str) -> None:
    assert family.answer(model) != family.answer(model.partition("-")[0])
    assert ask(Engine(family.zoo, [model], settings()), model).tokens == family.answer(model)


def test_mixed_with_models_that_have_none(family: Family) -> None:
    names = [*BASES, *MODELS]
    engine = Engine(family.zoo, names, settings(max_sequences=24))
    asked = [request(f"{n} {i}", n, PROMPT[i:], greedy(TOKENS)) for n in names for i in (0, 7)]
    for name, answer in run(engine, asked).items():
        model, cut = name.split()
        assert answer.tokens == family.answer(model, PROMPT[int(cut) :]), name


@pytest.mark.parametrize("model", MODELS)
@hypothesis_settings(max_examples=6, deadline=None)
@example(rows=1, page=4, cut=0)
@given(rows=st.integers(1, 30), page=st.integers(1, 40), cut=st.integers(0, 39))
def test_chunks_may_cut_inside(family: Family, model: str, rows: int, page: int, cut: int) -> None:
    tight = settings(max_sequences=1, max_rows=rows, page_size=page)
    engine = Engine(family.zoo, [model], tight)
    asked = [request(f"{i}", model, PROMPT[cut:], greedy(4)) for i in range(2)]
    expected = family.answer(model, PROMPT[cut:], count=4)
    assert [answer.tokens for answer in run(engine, asked).values()] == [expected] * 2


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_preempted(family: Family, prefix_cache: bool) -> None:
    models = ["base", *TUNED]
    tight = settings(
        memory=least_memory(family.zoo, models),
        page_size=4,
        max_rows=16,
        max_sequences=16,
        prefix_cache=prefix_cache,
    )
    engine = Engine(family.zoo, models, tight)
    asked = [request(f"{m} {i}", m, PROMPT[i:], greedy(TOKENS)) for m in models for i in range(5)]
    answers = run(engine, asked)
    assert engine.stats().preemptions > 0
    for name, answer in answers.items():
        model, cut = name.split()
        assert answer.tokens == family.answer(model, PROMPT[int(cut) :]), name


@pytest.mark.parametrize("model", TUNED)
def test_virtual_tokens_are_computed_once(family: Family, model: str) -> None:
    engine = Engine(family.zoo, [model], settings(page_size=4))
    assert ask(engine, model).cached_tokens == 0
    before = rows_of(engine)
    other = ask(engine, model, PROMPT[::-1])
    shared = VIRTUAL // 4 * 4  # whole pages
    assert rows_of(engine) - before == VIRTUAL - shared + len(PROMPT) + TOKENS - 1
    assert (other.cached_tokens, other.tokens) == (0, family.answer(model, PROMPT[::-1]))
    again = ask(engine, model)
    assert again.tokens == family.answer(model)
    # pages end where a multiple of 4 tokens ends, virtual ones included; all but the last token
    assert again.cached_tokens == len(PROMPT) - (VIRTUAL + len(PROMPT)) % 4
    stats = engine.stats()
    assert stats.prefix_hits == again.cached_tokens
    assert stats.prefix_queries == stats.prompt_tokens[model] == 3 * len(PROMPT)
    assert stats.generation_tokens[model] == 3 * TOKENS


def test_nobody_else_finds_their_pages(family: Family) -> None:
    family.tune("base-other", prefix_of(family.zoo, "base", 77))
    models = ["base", *TUNED, "base-other"]
    engine = Engine(family.zoo, models, settings(page_size=1))
    for model in models:
        before = rows_of(engine)
        assert ask(engine, model, salt="a").tokens == family.answer(model)
        virtual = VIRTUAL if "-" in model else 0
        assert rows_of(engine) - before == virtual + len(PROMPT) + TOKENS - 1
    before = rows_of(engine)
    assert ask(engine, "base-prefix", salt="b").cached_tokens == 0  # another tenant
    assert rows_of(engine) - before == VIRTUAL + len(PROMPT) + TOKENS - 1


@pytest.mark.parametrize("model", TUNED)
def test_penalties_do_not_count_them(family: Family, model: str) -> None:
    engine = Engine(family.zoo, [model], settings())
    for repetition, frequency in ((1.3, 0.0), (1.0, 0.7), (1.2, 0.4)):
        penalties = {"repetition_penalty": repetition, "frequency_penalty": frequency}
        asked = request("r", model, PROMPT, greedy(TOKENS, **penalties))
        expected = family.answer(model, repetition=repetition, frequency=frequency)
        assert run(engine, [asked])["r"].tokens == expected != family.answer(model)


def test_limits_count_what_users_send(family: Family) -> None:
    limit, answer = 80 - VIRTUAL, 9
    engine = Engine(family.zoo, ["base", *TUNED], settings(max_context=80, max_sequences=2))
    stats = engine.stats().max_context
    assert stats == {"base": 80, "base-prefix": limit, "base-prompt": limit}
    longest = [1 + i % 90 for i in range(limit - answer)]
    for model in TUNED:
        expected = family.answer(model, longest, count=answer)
        done = run(engine, [request("r", model, longest, greedy(answer))])["r"]
        assert done.tokens == expected
        said = f"is {limit} tokens, but {len(longest) + 1} in the prompt and 9 to generate are 60"
        with pytest.raises(ContextTooLong, match=said):
            engine.submit(request("r", model, [*longest, 1], greedy(answer)))
        with pytest.raises(BadRequest, match="0 to 95"):
            engine.submit(request("r", model, [-1], greedy(1)))


def test_draws_repeat_and_differ_by_seed(family: Family) -> None:
    engine = Engine(family.zoo, ["base", "base-prefix"], settings())
    answers = []
    for seed in (5, 5, 6):
        sampling = Sampling(max_tokens=TOKENS, temperature=0.9, seed=seed, ignore_eos=True)
        asked = [request(m, m, PROMPT, sampling) for m in ("base", "base-prefix")]
        answers.append(run(engine, asked)["base-prefix"].tokens)
    assert answers[0] == answers[1] != answers[2]


def test_models_that_cannot_be_served(family: Family, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("base", family.root / "base")
    prefix, prompt = prefix_of(zoo, "base", 0), prompt_of(zoo, "base", 0)
    wrong: dict[str, AnyTargets] = {
        "some": {1: prefix[1]},
        "uneven": {**prefix, 2: prefix_of(zoo, "base", 0, 5)[2]},
        "both": {**prefix, **prompt},
        "misplaced": {0: {"embed": prefix[1]["self_attn"]}},
        "wide": prompt_of(zoo, "base", 0, 255),
    }
    for name, targets in wrong.items():
        zoo.assemble(name, "base", zoo.layers("base"), targets=targets, parent="base")
        with pytest.raises(UnsupportedModel):
            Engine(zoo, [name], settings())
