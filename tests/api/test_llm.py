from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import blockllm
from blockllm.api.llm import LLM
from blockllm.core import Sampling
from blockllm.errors import (
    AgentDied,
    BadRequest,
    ConfigError,
    ContextTooLong,
    EngineError,
    ModelNotFound,
)
from tests.api.family import FakeZoo
from tests.cluster.fake_engine import CRASH, ERROR, SLOW, FakeEngine

MESSAGES = [{"role": "user", "content": "The quick"}]


class Kept:
    """An LLM and the engine under it."""

    def __init__(self, folder: Path) -> None:
        self.engine = FakeEngine()
        self.llm = LLM.over(FakeZoo(folder / "zoo"), lambda: self.engine)

    def wait_until_idle(self) -> None:
        deadline = time.monotonic() + 5
        while self.engine.requests:
            assert time.monotonic() < deadline
            time.sleep(0.005)


@pytest.fixture
def kept(folder: Path) -> Iterator[Kept]:
    kept = Kept(folder)
    with kept.llm:
        yield kept


def test_it_is_exported():
    assert blockllm.LLM is LLM
    assert set(blockllm.__all__) == {"LLM", "Sampling"}


def test_generate_from_every_kind_of_prompt(kept: Kept):
    llm = kept.llm
    three = Sampling(max_tokens=3)
    (one,) = llm.generate("The quick", model="base", sampling=three)
    assert (one.text, one.finish_reason, one.cached_tokens) == ("The quick", "length", 2)
    assert len(one.token_ids) == 3
    texts = [answer.text for answer in llm.generate(["The", "fox"], model="base", sampling=three)]
    assert texts[0].startswith("The")
    assert [a.token_ids for a in llm.generate([5, 6], "base", three)] == [[5, 6, 5]]
    assert [a.token_ids for a in llm.generate([[5], [6]], "base", three)] == [[5] * 3, [6] * 3]
    assert llm.generate([], "base") == []
    assert len(llm.generate("The", "base", three, n=4)) == 4


def test_messages_are_made_plain_as_those_of_requests_are(kept: Kept):
    parts = [{"type": "text", "text": "The"}, {"type": "refusal", "refusal": "no"}]
    sent = [{"role": "developer", "content": parts}, {"role": "assistant", "content": None}]
    plain = [{"role": "system", "content": "The\nno"}, {"role": "assistant", "content": ""}]
    assert kept.llm.chat_prompt(sent, "base") == kept.llm.chat_prompt(plain, "base")
    with pytest.raises(BadRequest, match="role"):
        kept.llm.chat([{"content": "The"}], "base")


def test_sampling_is_given_to_the_engine_in_its_spelling(kept: Kept):
    requests = []
    submit = kept.engine.submit
    kept.engine.submit = lambda request: (requests.append(request), submit(request))[1]  # type: ignore[method-assign]
    for sampling in (Sampling(top_k=-1), Sampling(top_p=0), Sampling(top_k=5)):
        kept.llm.generate("The", "base", sampling)
    assert [r.sampling.top_k for r in requests] == [0, 1, 5]
    assert all(r.sampling.top_p == 1 for r in requests)


def test_offline_is_said_to_the_engine(kept: Kept):
    found = []
    submit = kept.engine.submit
    kept.engine.submit = lambda request: (found.append(request.offline), submit(request))[1]  # type: ignore[method-assign]
    kept.llm.generate(["a", "b"], "base", Sampling(max_tokens=1), offline=True)
    kept.llm.generate("c", "base", Sampling(max_tokens=1))
    assert found == [True, True, False]


def test_stop_strings_and_logprobs(kept: Kept):
    sampling = Sampling(max_tokens=9, logprobs=1)
    (answer,) = kept.llm.generate("The quick brown", "base", sampling, stop="k b")
    assert (answer.text, answer.finish_reason) == ("The quic", "stop")
    assert [entry.chosen for entry in answer.logprobs] == [-0.5] * len(answer.token_ids)


def test_streams_add_up_and_leaving_one_cancels_it(kept: Kept):
    sampling = Sampling(max_tokens=6)
    pieces = list(kept.llm.stream("The quick", "base", sampling))
    assert "".join(piece.text for piece in pieces) == "The quickThe quick"
    assert pieces[-1].finish_reason == "length"
    for _ in kept.llm.stream("The quick", "base", Sampling(max_tokens=400, min_p=SLOW)):
        break
    kept.wait_until_idle()


def test_chat(kept: Kept):
    answer = kept.llm.chat(MESSAGES, "tuned", Sampling(max_tokens=5))
    assert answer.text == "The quick\n"
    pieces = kept.llm.chat_stream(MESSAGES, "tuned", Sampling(max_tokens=5))
    assert "".join(piece.text for piece in pieces) == answer.text
    with pytest.raises(BadRequest, match="chat template"):
        kept.llm.chat(MESSAGES, "plain")


def test_async_generate_and_stream(kept: Kept):
    async def main() -> None:
        many = [kept.llm.agenerate(f"The {i}", "base", Sampling(max_tokens=9)) for i in range(20)]
        answers = await asyncio.gather(*many)
        assert [answer[0].text[:5] for answer in answers] == [f"The {i}"[:5] for i in range(20)]
        slow = Sampling(max_tokens=400, min_p=SLOW)
        async with contextlib.aclosing(kept.llm.astream("The", "base", slow)) as pieces:
            async for piece in pieces:
                assert piece.token_ids
                break
        task = asyncio.create_task(kept.llm.agenerate("The", "base", slow))
        await asyncio.sleep(0.1)
        task.cancel()
        await asyncio.wait({task})

    asyncio.run(main())
    kept.wait_until_idle()


def test_errors_are_ours(kept: Kept, folder: Path):
    llm = kept.llm
    with pytest.raises(BadRequest, match="model"):
        llm.generate("a")
    with pytest.raises(ModelNotFound):
        llm.generate("a", "nix")
    with pytest.raises(BadRequest, match="temperature"):
        llm.generate("a", "base", Sampling(temperature=float("nan")))
    with pytest.raises(BadRequest, match="logprobs"):
        llm.generate("a", "base", Sampling(logprobs=-7))
    with pytest.raises(ContextTooLong):
        llm.generate([5] * 512, "base")
    with pytest.raises(BadRequest, match="vocabulary"):
        llm.generate([2**20], "base")
    with pytest.raises(EngineError, match="refused"):
        llm.generate("a", "base", Sampling(min_p=ERROR))
    with pytest.raises(AgentDied, match="broke"):
        llm.generate("a", "base", Sampling(min_p=CRASH))
    with pytest.raises(AgentDied):
        llm.generate("a", "base")


def test_a_refused_prompt_cancels_its_siblings(kept: Kept):
    with pytest.raises(BadRequest):
        kept.llm.generate([[5], [2**20]], "base", Sampling(max_tokens=400, min_p=SLOW))
    kept.wait_until_idle()


def test_unknown_settings_are_named():
    with pytest.raises(ConfigError, match="max_cows"):
        LLM("base", zoo="/nonexistent", max_cows=3)


def test_seeds_differ_between_choices(kept: Kept):
    seeds = []
    submit = kept.engine.submit
    kept.engine.submit = lambda r: (seeds.append(r.sampling.seed), submit(r))  # type: ignore
    kept.llm.generate("a", "base", Sampling(max_tokens=1, seed=2**63 - 1), n=2)
    kept.llm.generate("a", "base", Sampling(max_tokens=1, seed=7), n=3)
    assert seeds == [2**63 - 1, -(2**63), 7, 8, 9]
