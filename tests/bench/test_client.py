"""The client against a fake server, a well-behaved one and broken ones."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.bench.client import Target, body_of
from blockllm.bench.metrics import report
from blockllm.bench.runner import Run, Sender
from blockllm.bench.sse import Chunk, EventReader
from blockllm.bench.workload import Planned, Workload, plan
from tests.bench.fake_server import Fake, choice, event

T = TypeVar("T")
WORKLOAD = Workload(
    models=("a", "b"), requests=12, concurrency=3, prompt_length="5", output_length="6"
)


def with_server(fake: Fake, work: Callable[[str], Awaitable[T]]) -> T:
    async def main() -> T:
        runner, port = await fake.start(0)
        try:
            return await work(f"http://127.0.0.1:{port}")
        finally:
            await runner.cleanup()

    return asyncio.run(main())


def replay(fake: Fake, workload: Workload, timeout: float = 10.0) -> Run:
    def work(url: str) -> Awaitable[Run]:
        targets = {model: Target(url, model) for model in workload.models}
        sender = Sender(targets, {"x": "secret"}, timeout)
        return sender.replay(plan(workload), workload.concurrency)

    return with_server(fake, work)


def test_outcomes_are_in_order_and_complete() -> None:
    run = replay(Fake(0), WORKLOAD)
    for one, planned in zip(run.outcomes, plan(WORKLOAD), strict=True):
        assert isinstance(planned.prompt, list)
        ids = [(sum(planned.prompt) + i) % 100 for i in range(6)]
        assert (one.index, one.model, one.error) == (planned.index, planned.model, "")
        assert one.tokens == 6 and one.prompt_tokens == 5 and one.token_ids == ids
        assert one.text == "".join(f" {i}" for i in ids)
        assert 1 <= len(one.arrivals) <= 6 and sorted(one.arrivals) == one.arrivals
        assert 0 < one.arrivals[0] <= one.arrivals[-1] <= one.end
    assert run.duration >= max(o.end for o in run.outcomes) and run.client_cpu > 0


def test_bodies_ask_for_greedy_streams_of_full_length() -> None:
    fake = Fake(0)
    replay(fake, msgspec.structs.replace(WORKLOAD, tenants=("x",), requests=1))
    (body,) = fake.bodies
    assert body["stream"] and body["ignore_eos"] and body["temperature"] == 0
    assert body["max_tokens"] == 6 and body["stream_options"] == {"include_usage": True}
    assert "return_token_ids" not in body
    assert fake.keys == ["Bearer secret"]


def test_extra_body_wins() -> None:
    planned = Planned(0, 0.0, "a", "", [1], 1, 2)
    body = body_of(planned, Target("", "other", {"temperature": 1, "n_probs": 0}, token_ids=True))
    fields = msgspec.json.decode(body)
    assert fields["model"] == "other" and fields["temperature"] == 1 and fields["n_probs"] == 0
    assert fields["return_token_ids"] is True


@pytest.mark.parametrize(
    ("model", "kind", "detail"),
    [
        ("busy", "http-503", "too many"),
        ("cut", "cut", "2 tokens"),
        ("broken", "server", "no memory"),
        ("garbage", "garbage", ""),
        ("slow", "timeout", ""),
    ],
)
def test_failures_are_counted_by_kind(model: str, kind: str, detail: str) -> None:
    workload = msgspec.structs.replace(WORKLOAD, models=("a", model), requests=4)
    found = replay(Fake(0), workload, timeout=0.5)
    failed = [one for one in found.outcomes if one.model == model]
    assert [one.error for one in failed] == [kind, kind] and detail in failed[0].detail
    total = report(found).total
    assert total.failed == {kind: 2} and total.output_tokens == 12


def test_nobody_listens() -> None:
    sender = Sender({"a": Target("http://127.0.0.1:9", "a")})
    run = asyncio.run(sender.replay(plan(msgspec.structs.replace(WORKLOAD, models=("a",)))))
    assert report(run).total.failed == {"connection": 12}


def test_a_server_that_hangs_up_is_no_answer() -> None:
    async def work() -> Run:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            workload = msgspec.structs.replace(WORKLOAD, models=("a",), requests=2)
            return await Sender({"a": Target(url, "a")}).replay(plan(workload))

    assert report(asyncio.run(work())).total.failed == {"connection": 2}


def test_a_closed_loop_keeps_its_concurrency() -> None:
    run = replay(Fake(0), msgspec.structs.replace(WORKLOAD, requests=30))
    edges = [(o.sent, 1) for o in run.outcomes] + [(o.sent + o.end, -1) for o in run.outcomes]
    running = most = 0
    for _, step in sorted(edges):
        running += step
        most = max(most, running)
    assert most == 3


def test_an_open_loop_sends_on_time() -> None:
    workload = msgspec.structs.replace(WORKLOAD, concurrency=0, rate=40.0, arrival="uniform")
    run = replay(Fake(0), workload)
    for one in run.outcomes[1:]:
        assert one.sent >= one.index / 40 and one.lag == pytest.approx(one.sent - one.index / 40)


def test_warming_up_and_solo_use_other_prompts() -> None:
    fake = Fake(0)

    async def work(url: str) -> Run:
        sender = Sender({model: Target(url, model) for model in WORKLOAD.models})
        await sender.warm_up(WORKLOAD, 5)
        return await sender.solo(WORKLOAD, 3)

    solo = with_server(fake, work)
    assert [o.model for o in solo.outcomes] == ["a", "b"] * 3 and len(fake.bodies) == 11
    measured = [p.prompt for p in plan(WORKLOAD)]
    assert not [body for body in fake.bodies if body["prompt"] in measured]


@given(st.data(), st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_events_do_not_depend_on_how_bytes_are_cut(data: st.DataObject, ending: bytes) -> None:
    stream = (
        b": hello" + ending + event(choice("é\n")) + event({"choices": []}) + b"data: [DONE]\n\n"
    )
    stream = stream.replace(b"\n\n", ending)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    reader = EventReader()
    found: list[Chunk] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        found += reader.feed(stream[begin:end])
    assert [[c.text for c in chunk.choices] for chunk in found] == [["é\n"], []]
    assert reader.is_done
