from __future__ import annotations

import asyncio
import os
import stat
from pathlib import Path

import msgspec
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from blockllm import errors
from blockllm.cluster import zmq_link
from blockllm.cluster.link import InprocLink
from blockllm.cluster.messages import (
    Cancel,
    Failed,
    FromAgent,
    Ready,
    Refused,
    Submit,
    ToAgent,
    Tokens,
    refusal,
)
from blockllm.cluster.zmq_link import AgentLink, Codec, FrontLink
from blockllm.core import Finish, Request, Sampling, TokenEvent, TokenLogprobs
from blockllm.observability.stats import EngineStats

REQUEST = Request("r", "m", (1, 2, 70_000), Sampling(seed=3, logit_bias={5: -1.0}), salt="s")
READY = Ready(EngineStats(prompt_tokens={"m": 3}))
EVENTS = [
    TokenEvent("r", 7, TokenLogprobs(-0.5, ((7, -0.5), (8, -1.5))), cached_tokens=2),
    TokenEvent("r", finish=Finish.STOP),
]


def test_both_directions_over_zmq_keep_order_and_values():
    received: list[FromAgent] = []

    async def talk() -> list[ToAgent]:
        front = FrontLink(received.append)
        front.send(Cancel("lost"))  # no peer is there yet
        agent = AgentLink(front.address)
        agent.send(READY)
        while not received:
            await asyncio.sleep(0.001)
        front.send(Submit(REQUEST))
        front.send(Cancel("r"))
        arrived = await asyncio.to_thread(agent.receive, True)
        while len(arrived) < 2:
            arrived += await asyncio.to_thread(agent.receive, True)
        agent.send(Tokens(EVENTS))
        agent.send(Failed("OutOfMemory", "no"))
        while len(received) < 3:
            await asyncio.sleep(0.001)
        agent.close()
        front.close()
        return arrived

    assert asyncio.run(talk()) == [Submit(REQUEST), Cancel("r")]
    assert received == [READY, Tokens(EVENTS), Failed("OutOfMemory", "no")]


def test_the_path_is_private_and_removed():
    async def look() -> tuple[int, str]:
        front = FrontLink(lambda message: None)
        folder = Path(front.address.removeprefix("ipc://")).parent
        mode = stat.S_IMODE(os.stat(folder).st_mode)
        front.close()
        front.close()
        return mode, str(folder)

    mode, folder = asyncio.run(look())
    assert mode == 0o700
    assert not os.path.exists(folder)


@given(st.binary(max_size=200))
def test_garbage_is_dropped_and_counted(frame: bytes):
    codec = Codec()
    decoder = msgspec.msgpack.Decoder(ToAgent)
    message = codec.decode(decoder, frame)
    assert (message is None) == (codec.dropped == 1)


def test_a_message_of_the_other_direction_is_garbage():
    codec = Codec()
    frame = msgspec.msgpack.encode(Tokens(EVENTS))
    assert codec.decode(msgspec.msgpack.Decoder(ToAgent), frame) is None
    assert codec.dropped == 1


def test_garbage_between_messages_does_not_stop_the_link():
    received: list[FromAgent] = []

    async def talk() -> int:
        front = FrontLink(received.append)
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = context.socket(zmq.PAIR)
        socket.connect(front.address)
        for frame in (b"", b"\xc1", b"\x80", msgspec.msgpack.encode(Tokens(EVENTS))):
            socket.send(frame)
        while not received:
            await asyncio.sleep(0.001)
        socket.close()
        context.term()
        front.close()
        return front.codec.dropped

    assert asyncio.run(talk()) == 3
    assert received == [Tokens(EVENTS)]


def test_too_long_a_message_is_refused_by_the_sender(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(zmq_link, "MAX_MESSAGE_BYTES", 10)

    async def send() -> None:
        front = FrontLink(lambda message: None)
        try:
            with pytest.raises(ValueError, match="allowed 10"):
                front.send(Submit(REQUEST))
        finally:
            front.close()

    asyncio.run(send())


def test_inproc_passes_messages_as_they_are():
    delivered: list[FromAgent] = []
    link = InprocLink(delivered.append)
    first = Submit(REQUEST)
    link.post(first)
    link.post(Cancel("r"))
    assert link.receive(wait=True) == [first, Cancel("r")]
    assert link.receive(wait=False) == []
    tokens = Tokens(EVENTS)
    link.send(tokens)
    assert delivered[0] is tokens


def test_errors_survive_the_wire():
    error = errors.ContextTooLong("too long", "prompt")
    message = refusal("r", error)
    back = errors.error_of(message.kind, message.message, message.param)
    assert type(back) is errors.ContextTooLong
    assert (str(back), back.param) == ("too long", "prompt")
    assert type(errors.error_of("annotations", "x")) is errors.EngineError
    assert type(errors.error_of("OutOfMemory", "x")) is errors.OutOfMemory
    assert refusal("r", errors.Overloaded("y")) == Refused("r", "Overloaded", "y", None)


def test_a_deep_temporary_folder_does_not_make_the_path_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("x" * 120)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))

    async def listen() -> str:
        link = FrontLink(lambda message: None)
        link.close()
        return link.address

    assert asyncio.run(listen()).startswith("ipc:///tmp/blockllm-")
    assert list(deep.iterdir()) == []


@pytest.mark.parametrize("instead", [None, b"no socket"])
def test_an_agent_does_not_wait_for_a_socket_that_is_gone(instead: bytes | None) -> None:
    async def listen() -> None:
        link = FrontLink(lambda message: None)
        path = Path(link.address.removeprefix("ipc://"))
        path.unlink()
        if instead is not None:
            path.write_bytes(instead)
        with pytest.raises(OSError, match=r"No such file|no socket"):
            AgentLink(link.address)
        link.close()

    asyncio.run(listen())
