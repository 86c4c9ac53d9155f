from __future__ import annotations

import threading
import time

import pytest

from blockllm.cluster.agent import Loaded, run_agent
from blockllm.cluster.link import InprocLink
from blockllm.cluster.local import LocalAgent
from blockllm.cluster.messages import (
    AskStats,
    Cancel,
    Failed,
    FromAgent,
    Ready,
    Refused,
    Shutdown,
    Stats,
    Submit,
    Tokens,
)
from blockllm.core import Finish, Request, Sampling
from blockllm.errors import AgentDied, EngineError, OutOfMemory
from tests.cluster.fake_engine import CRASH, SLOW, FakeEngine


class Running:
    """An agent loop on a thread, and what it has said."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.said: list[FromAgent] = []
        self.link = InprocLink(self.said.append)
        self.result: list[bool] = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.result.append(run_agent(lambda: Loaded(self.engine), self.link))

    def wait_for(self, kind: type) -> FromAgent:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            for message in self.said:
                if isinstance(message, kind):
                    return message
            time.sleep(0.002)
        raise AssertionError(f"no {kind.__name__} among {self.said}")

    def stop(self) -> bool:
        self.link.post(Shutdown())
        self.thread.join(5)
        return self.result[0]


def request(name: str = "r", **sampling: object) -> Request:
    return Request(name, "base", (1, 2, 3), Sampling(**sampling))  # type: ignore[arg-type]


def test_tokens_arrive_in_order_and_books_are_reported_when_idle():
    agent = Running(FakeEngine())
    agent.link.post(Submit(request(max_tokens=4)))
    agent.wait_for(Stats)
    assert agent.stop()
    assert isinstance(agent.said[0], Ready)
    events = [event for m in agent.said if isinstance(m, Tokens) for event in m.events]
    assert [event.token for event in events] == [1, 2, 3, 1]
    assert events[-1].finish is Finish.LENGTH


def test_entries_tell_the_time_to_the_engine_without_its_turns():
    agent = Running(FakeEngine())
    now = time.monotonic()
    first = Request("r", "base", (1, 2, 3), Sampling(max_tokens=2), arrival=now - 0.5)
    agent.link.post(Submit(first, sent=now))
    told = agent.wait_for(Tokens)
    assert isinstance(told, Tokens)
    assert told.made >= now
    assert len(told.entries) == 1 and 0.5 <= told.entries[0] < 1.0
    assert agent.stop()


def test_waiting_for_a_turn_is_not_the_front_ends():
    agent = Running(FakeEngine())
    agent.link.post(Submit(request("slow", max_tokens=3, min_p=SLOW)))  # turns of 50 ms
    agent.wait_for(Tokens)
    now = time.monotonic()
    late = Request("late", "base", (1,), Sampling(max_tokens=1), arrival=now)
    agent.link.post(Submit(late, sent=now))
    agent.wait_for(Stats)
    assert agent.stop()
    entries = [seconds for m in agent.said if isinstance(m, Tokens) for seconds in m.entries]
    assert len(entries) == 1 and entries[0] < 0.04


def test_a_refused_request_fails_alone():
    agent = Running(FakeEngine(max_requests=1, vocab_size=10))
    agent.link.post(Submit(Request("bad", "base", (11,))))
    agent.link.post(Submit(request("good", max_tokens=2)))
    agent.wait_for(Tokens)
    assert agent.stop()
    refused = agent.wait_for(Refused)
    assert refused == Refused(
        "bad", "BadRequest", "prompt: an id is not in the vocabulary", "prompt"
    )


def test_an_unexpected_error_in_submit_refuses_that_request():
    agent = Running(FakeEngine())
    agent.link.post(Submit(Request("empty", "base", ())))
    assert agent.wait_for(Refused).kind == "EngineError"
    assert agent.stop()


def test_cancel_reaches_the_engine():
    agent = Running(FakeEngine())
    agent.link.post(Submit(request(max_tokens=10_000, min_p=SLOW)))
    agent.wait_for(Tokens)
    agent.link.post(Cancel("r"))
    agent.wait_for(Stats)
    assert agent.stop()
    assert not agent.engine.requests


def test_a_broken_engine_is_reported_and_ends_the_loop():
    agent = Running(FakeEngine())
    agent.link.post(Submit(request(min_p=CRASH)))
    assert agent.wait_for(Failed).kind == "AgentDied"
    agent.thread.join(5)
    assert agent.result == [False]


def test_unbalanced_books_end_the_loop():
    engine = FakeEngine()

    def leak() -> None:
        raise AssertionError("3 pages are owned by nobody")

    engine.check_books = leak  # type: ignore[method-assign]
    agent = Running(engine)
    agent.link.post(Submit(request(max_tokens=1)))
    agent.wait_for(Failed)
    agent.thread.join(5)
    assert agent.result == [False]


def test_an_idle_agent_sleeps_and_answers_at_once():
    agent = Running(FakeEngine())
    agent.wait_for(Ready)
    before = time.thread_time(), time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before[1] < 0.05
    started = time.monotonic()
    agent.link.post(AskStats())
    agent.wait_for(Stats)
    assert time.monotonic() - started < 0.1
    assert agent.stop()


def test_local_agent_raises_what_loading_raised():
    def fail() -> Loaded:
        raise OutOfMemory("1 of 2 models would fit")

    with pytest.raises(OutOfMemory, match="would fit"):
        LocalAgent(fail)


def test_local_agent_reports_unexpected_loading_errors():
    def fail() -> Loaded:
        raise ValueError("odd")

    with pytest.raises(EngineError, match="odd"):
        LocalAgent(fail)


def test_local_agent_fails_what_is_in_flight_when_it_closes():
    agent = LocalAgent(lambda: Loaded(FakeEngine()))
    items: list[object] = []
    agent.submit(request(max_tokens=10_000, min_p=SLOW), lambda item, made=0.0: items.append(item))
    while not items:
        time.sleep(0.002)
    agent.close()
    assert isinstance(items[-1], AgentDied)
    with pytest.raises(AgentDied):
        agent.submit(request("late"), lambda item, made=0.0: items.append(item))
