"""Models of one base that have vocabularies of their own, in one batch."""

from __future__ import annotations

import pytest

from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.engine.score import Scorer, compare
from blockllm.errors import BadRequest, EngineError
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint, make_lora, resize_vocabulary

SIZES = {"base": 96, "more": 104, "fewer": 90}
BOTH = ["embed_tokens", "lm_head"]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """A base, and two adapters whose base had more or fewer tokens."""
    root = tmp_path_factory.mktemp("vocabularies")
    base, zoo = make_checkpoint(root / "base", num_hidden_layers=2), Zoo(root / "zoo")
    zoo.add("base", base)
    for seed, name in enumerate(("more", "fewer")):
        resized = resize_vocabulary(base, root / f"{name}-base", SIZES[name])
        make_lora(resized, root / name, seed=seed, recorded=base, modules_to_save=BOTH)
        zoo.add(name, root / name, base="base")
    return zoo


def requests(sampling: Sampling, label: str) -> list[Request]:
    """One of each model, over its last token."""
    return [
        request(f"{name}-{label}", name, [5, 9, size - 1, 7], sampling)
        for name, size in SIZES.items()
    ]


def test_together_as_alone(zoo: Zoo) -> None:
    ways = [
        *requests(greedy(12, logprobs=3, min_tokens=4, stop_ids=(3,)), "greedy"),
        *requests(Sampling(max_tokens=12, seed=1, top_k=500, ignore_eos=True), "sampled"),
        *requests(
            Sampling(
                max_tokens=12, seed=2, top_p=0.9, repetition_penalty=1.3, presence_penalty=0.5,
                logit_bias={89: 5.0}, ignore_eos=True,
            ),
            "penalties",
        ),
    ]  # fmt: skip
    engine = Engine(zoo, None, settings(max_sequences=len(ways)))
    together = run(engine, ways)
    for one in ways:
        alone = run(Engine(zoo, [one.model], settings()), [one])[one.id]
        assert together[one.id].tokens == alone.tokens, one.id
        assert max(alone.tokens) < SIZES[one.model]


def test_each_has_its_bounds(zoo: Zoo) -> None:
    engine = Engine(zoo, None, settings())
    for name, size in SIZES.items():
        last = greedy(3, logit_bias={size - 1: 100.0})
        assert run(engine, [request("last", name, [1], last)])["last"].tokens == [size - 1] * 3
        over = f"got the token id {size}, allowed 0 to {size - 1}:"
        with pytest.raises(BadRequest, match=f"prompt: {over}"):
            engine.submit(request("prompt", name, [1, size], greedy(1)))
        with pytest.raises(BadRequest, match=f"logit_bias: {over}"):
            engine.submit(request("bias", name, [1], greedy(1, logit_bias={size: 1.0})))
        with pytest.raises(BadRequest, match=f"stop_token_ids: {over}"):
            engine.submit(request("stop", name, [1], greedy(1, stop_ids=(size,))))


def test_their_distributions_are_not_compared(zoo: Zoo) -> None:
    scorer = Scorer(zoo, ["base", "more"], settings(prefix_cache=False))
    with pytest.raises(EngineError, match="more has 104 tokens and base 96"):
        compare(scorer, "more", "base", [[5, 6, 7]])
