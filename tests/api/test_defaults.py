"""What a model's files give requests, and models whose tokenizer and weights do not go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockllm.api.keys import KeyRing
from blockllm.api.llm import LLM
from blockllm.api.models import load_models
from blockllm.core import Block, Chain, ChainEntry, EmbedFunction, Layer, Sampling
from tests.api.family import FakeZoo
from tests.api.test_auth import make
from tests.cluster.fake_engine import FakeEngine

OWN = {"temperature": 0.25, "top_k": 7, "max_new_tokens": 40, "min_p": None}
CHAT = {"messages": [{"role": "user", "content": "The quick"}]}
TEXT = {"prompt": "The"}


@pytest.fixture
def zoo(folder: Path, tmp_path: Path) -> FakeZoo:
    """The fake zoo, whose models `base` and `tuned` have defaults of their own."""
    shutil.copytree(folder / "zoo", tmp_path / "zoo")
    (tmp_path / "zoo" / "generation_config.json").write_text(json.dumps(OWN))
    return FakeZoo(tmp_path / "zoo")


def ask(zoo: FakeZoo, body: dict[str, Any], **settings: object) -> Sampling:
    """The sampling that the agent is asked for."""
    agent, _, client = make(load_models(zoo, None), KeyRing([]), **settings)
    path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
    answer = client.post(path, json={"model": "base", **body})
    assert answer.status_code == 200, answer.text
    return agent.requests[0].sampling


def test_fields_that_are_left_out_are_the_models_own(zoo: FakeZoo):
    assert ask(zoo, CHAT) == Sampling(temperature=0.25, top_k=7, max_tokens=40)
    assert ask(zoo, TEXT) == Sampling(temperature=0.25, top_k=7, max_tokens=16)
    assert ask(zoo, {**CHAT, "model": "tuned", "top_k": None}).top_k == 7
    assert ask(zoo, {**TEXT, "model": "plain"}) == Sampling(max_tokens=16)


def test_fields_that_are_given_count(zoo: FakeZoo):
    given = {"temperature": 1, "top_k": 0, "max_tokens": 60, "min_p": 0.5}
    for body in (CHAT, TEXT):
        assert ask(zoo, {**body, **given}) == Sampling(max_tokens=60, min_p=0.5)


def test_a_setting_switches_them_off(zoo: FakeZoo):
    assert ask(zoo, TEXT, sampling_defaults="openai") == Sampling(max_tokens=16)
    assert ask(zoo, CHAT, sampling_defaults="openai").max_tokens > 40


def test_llm_takes_them_where_no_sampling_is_given(zoo: FakeZoo):
    engine = FakeEngine()
    asked: list[Sampling] = []
    submit = engine.submit
    engine.submit = lambda r: (asked.append(r.sampling), submit(r))  # type: ignore
    with LLM.over(zoo, lambda: engine) as llm:
        llm.generate("The", "base")
        llm.generate("The", "base", Sampling(max_tokens=3))
        llm.chat(CHAT["messages"], "base")
        llm.generate([5] * 500, "base")
    own = Sampling(temperature=0.25, top_k=7, max_tokens=40)
    assert asked[:3] == [own, Sampling(max_tokens=3), own]
    assert asked[3].max_tokens == 12


class Narrow(FakeZoo):
    """Its models have weights for the first tokens of the tokenizer only."""

    def chains(self, names):
        layer = Layer("", EmbedFunction(300, 8), {})
        return {name: Chain(name, (ChainEntry(Block("", (layer,))),), 512) for name in names}


def test_text_that_needs_tokens_without_weights_is_refused_with_the_cause(folder: Path):
    models = load_models(Narrow(folder / "zoo"), None)
    _, _, client = make(models, KeyRing([]))
    answer = client.post("/v1/completions", json={"model": "base", "prompt": "a quick"})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, "prompt")
    assert "weights do not: they have 300 tokens" in error["message"]
    assert "which the model's tokenizer knows" in error["message"]
    answer = client.post("/v1/chat/completions", json={"model": "base", **CHAT})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")
    assert client.post("/v1/completions", json={"model": "base", "prompt": "a"}).status_code == 200


class Wordless(FakeZoo):
    """Its models came without any text file."""

    def asset(self, name: str, file: str) -> Path | None:
        return None


def test_a_model_without_a_tokenizer_takes_token_ids(folder: Path):
    _, _, client = make(load_models(Wordless(folder / "zoo"), None), KeyRing([]))
    asked = {"model": "base", "prompt": [5, 6], "return_token_ids": True, "logprobs": 0}
    answer = client.post("/v1/completions", json=asked).json()["choices"][0]
    assert (answer["text"], answer["token_ids"]) == ("", [5])
    answer = client.post("/v1/completions", json={"model": "base", "prompt": "text"})
    assert answer.status_code == 400
    assert "has no tokenizer.json: give token ids" in answer.json()["error"]["message"]
