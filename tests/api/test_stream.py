"""Events of a stream: what is encoded once, and whose waiting is measured."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from blockllm.api import stream
from blockllm.api.answers import ChatChunk, ChatChunkChoice, ChatDelta
from blockllm.api.stream import EventStream, StreamWrite, TextFrames, encode_events

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def chunk(index: int, text: str, model: str) -> ChatChunk:
    choice = ChatChunkChoice(index, ChatDelta(content=text))
    return ChatChunk(id="i", created=1, model=model, system_fingerprint="f", choices=[choice])


@given(TEXTS, TEXTS.filter(bool))
def test_a_framed_event_equals_an_encoded_one(model: str, text: str):
    model += '"content":""'
    frames = TextFrames(lambda index: chunk(index, "", model), "content")
    for index in (0, 3, 0):
        expected = encode_events([chunk(index, text, model)])
        assert frames.event(index, text) == expected
        assert json.loads(expected[6:])["choices"][0]["delta"] == {"content": text}


def test_a_frame_is_made_once_per_choice_and_silence_is_no_event():
    made: list[int] = []

    def make(index: int) -> msgspec.Struct:
        made.append(index)
        return chunk(index, "", "m")

    frames = TextFrames(make, "content")
    assert frames.event(0, "") == b"" and made == []
    for index in (0, 1, 0, 1):
        frames.event(index, "x")
    assert made == [0, 1]


async def play(made: list[float], waits: list[float]) -> list[float]:
    """Observations when the client lets each write wait that long."""
    observed: list[float] = []

    async def events() -> AsyncGenerator[StreamWrite, None]:
        for moment in made:
            yield StreamWrite(b"x", moment and asyncio.get_running_loop().time())

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    delays = iter([0.0, *waits, 0.0])

    async def send(message: object) -> None:
        delay = next(delays)
        if delay:
            await asyncio.sleep(delay)

    await EventStream(events(), observed.append)({"type": "http"}, receive, send)
    return observed


def test_each_event_is_measured_unless_it_has_no_clock():
    observed = asyncio.run(play([1, 0, 1], [0, 0, 0]))
    assert len(observed) == 2
    assert all(0 <= seconds < 1 for seconds in observed)


def test_a_client_that_does_not_take_its_bytes_is_not_our_overhead():
    wait = stream.STALL_SECONDS * 2
    observed = asyncio.run(play([1, 1, 1], [0, wait, 0]))
    assert len(observed) == 2
    assert max(observed) < wait
