"""Lanes: who computes what, on how many threads, and whose pages are free when."""

from __future__ import annotations

import threading

import pytest

from blockllm.engine import Engine
from blockllm.engine.batch.turn import Turn
from blockllm.engine.lanes import Done, Runner
from blockllm.engine.policies import Chunked, Lanes
from blockllm.engine.policies.lanes import shares
from blockllm.errors import ConfigError
from blockllm.zoo import Zoo
from tests.driver import Answer, greedy, request, run, settings, step
from tests.engine.conftest import MODELS
from tests.engine.fake_view import make_view

SHORT = request("short", "base", range(3, 6), greedy(40))


class Gate:
    """Lets one batch wait before it is computed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.holds = False
        self.reached, self.open = threading.Event(), threading.Event()
        real = Runner.run

        def run_later(runner: Runner, turn: Turn, threads: int = 0) -> Done:
            if self.holds and turn.batch.has_prompts:
                self.reached.set()
                assert self.open.wait(20)
            return real(runner, turn, threads)

        monkeypatch.setattr(Runner, "run", run_later)


def free_pages(engine: Engine) -> int:
    return engine.stats().num_pages_free


def test_pages_of_a_cancelled_request_are_free_when_its_batch_is_through(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    options = settings(batching="lanes", threads=2, prefix_cache=False)
    engine, answers = Engine(zoo, ["base"], options), dict[str, Answer]()
    whole = free_pages(engine)
    engine.submit(SHORT)
    while "short" not in answers:
        step(engine, answers)
    gate.holds = True
    engine.submit(request("long", "base", range(3, 60), greedy(4)))
    while not gate.reached.is_set():  # answers go on beside the prompt
        step(engine, answers)
    held = free_pages(engine)
    count = len(answers["short"].tokens)
    engine.cancel("long")
    step(engine, answers)
    assert len(answers["short"].tokens) == count + 1
    assert free_pages(engine) <= held < whole, "a lane computes on these pages"
    engine.check_books()
    gate.holds = False
    gate.open.set()
    while engine.has_work:
        step(engine, answers)
    assert free_pages(engine) == whole
    engine.check_books()
    assert "long" not in answers
    alone = run(
        Engine(zoo, ["base"], settings()), [request("short", "base", range(3, 6), greedy(40))]
    )
    assert answers["short"].tokens == alone["short"].tokens


def test_a_cancelled_request_keeps_its_slot_until_its_batch_is_through(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    options = settings(batching="lanes", threads=2, max_sequences=1)
    engine, answers = Engine(zoo, ["base"], options), dict[str, Answer]()
    gate.holds = True
    engine.submit(request("long", "base", range(3, 60), greedy(4)))
    stepping = threading.Thread(target=step, args=(engine, answers))
    stepping.start()
    assert gate.reached.wait(20)
    engine.cancel("long")
    gate.holds = False
    engine.submit(SHORT)
    plan, _ = engine._scheduler.plan((0, 1))
    assert not plan.admit, "its slot is not free yet"
    gate.open.set()
    stepping.join()
    while engine.has_work:
        step(engine, answers)
    engine.check_books()
    assert list(answers) == ["short"]


def test_a_lane_that_fails_says_so(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(zoo, ["base"], settings(batching="lanes", threads=2))

    def fail(*_: object) -> Done:
        raise MemoryError("no room")

    monkeypatch.setattr(Runner, "run", fail)
    engine.submit(request("a", "base", range(3, 9), greedy(2)))
    with pytest.raises(MemoryError, match="no room"):
        engine.step()


def test_shares_of_cores() -> None:
    def split(lanes: tuple[int, ...], wanted: tuple[int, int], threads: int = 8) -> tuple[int, ...]:
        return shares(make_view()._replace(lanes=lanes, threads=threads), wanted)

    assert split((0, 0), (5, 0)) == (8, 0) and split((0, 0), (0, 1)) == (0, 8)
    assert split((0, 0), (6, 2)) == (6, 2) and split((0, 0), (1, 40)) == (1, 7)
    assert split((0, 0), (40, 1)) == (7, 1) and split((0, 0), (3, 3), threads=2) == (1, 1)
    assert split((3, 0), (0, 2)) == (0, 5), "what computes keeps what it has"


def test_a_lane_with_all_cores_lets_the_other_wait() -> None:
    view = make_view()._replace(lanes=(4, 0), threads=4)
    assert Lanes(Chunked()).plan(view).work == ()


@pytest.mark.parametrize(
    ("options", "what"),
    [({"threads": 1}, "two threads"), ({"threads": 2, "overlap": "on"}, "overlap")],
)
def test_lanes_that_cannot_be_are_refused(zoo: Zoo, options: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Engine(zoo, MODELS, settings(batching="lanes", **options))
