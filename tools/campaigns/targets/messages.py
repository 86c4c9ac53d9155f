"""What travels between processes: messages of both directions, and pinned chains."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from blockllm.chain import decode_chains, encode_chains, fingerprints
from blockllm.cluster.agent import Agent, Loaded
from blockllm.cluster.messages import (
    AskStats,
    Cancel,
    Failed,
    FromAgent,
    Progress,
    Ready,
    Refused,
    Stats,
    Submit,
    ToAgent,
    Tokens,
)
from blockllm.cluster.streams import Item, Streams
from blockllm.cluster.zmq_link import Codec
from blockllm.config import EngineSettings
from blockllm.core import Finish, Request, Sampling, TokenEvent, TokenLogprobs
from blockllm.engine import Engine
from blockllm.errors import EngineError, error_of
from blockllm.observability.stats import EngineStats
from tools.campaigns import makings
from tools.campaigns.documents import words_of
from tools.campaigns.draws import Draws, edited, flipped
from tools.campaigns.oracle import Target

TURNS = 6  # of the engine after each message
TO_AGENT = (
    Submit(Request("r", "base", (1, 2, 3), Sampling(max_tokens=3, logprobs=2, seed=5)), 1.0),
    Submit(
        Request(
            "s", "lora", (4, 5), tenant="t", salt="x", arrival=2.0,
            sampling=Sampling(2, 1, 0.5, 0.9, 4, 0.1, 0.5, -0.5, 1.2, {3: -2.0}, 1, (2,), True),
        ), 3.0,
    ),
    Cancel("r"),
    AskStats(),
)  # fmt: skip
FROM_AGENT = (
    Progress("loading", 1, 2),
    Ready(EngineStats(max_context={"base": 5}), {"base": "fp_0"}, {"lora": "gone"}),
    Tokens(
        [
            TokenEvent("r", 5, TokenLogprobs(-0.5, ((5, -0.5), (6, -1.0))), cached_tokens=2),
            TokenEvent("r", finish=Finish.STOP, queue_seconds=0.1, error="e"),
        ], 1.5, [0.1],
    ),
    Refused("r", "BadRequest", "no", "prompt"),
    Stats(EngineStats(num_running=1)),
    Failed("OutOfMemory", "too large"),
)  # fmt: skip


def _reader(messages: tuple[Any, ...]) -> Callable[[bytes], bytes]:
    """Frames: any bytes, intact messages with bits flipped, or with other values inside."""
    plain = [msgspec.to_builtins(message) for message in messages]
    frames = [msgspec.msgpack.encode(message) for message in messages]
    words = words_of(plain)

    def read(data: bytes) -> bytes:
        draws = Draws(data)
        kind = draws.below(3)
        if kind == 0:
            return draws.rest()
        if kind == 1:
            return flipped(draws.pick(frames), draws)
        value = edited(draws.pick(plain), draws, words)
        try:
            return msgspec.msgpack.encode(value)
        except (OverflowError, UnicodeEncodeError, ValueError):  # none can write these
            return draws.rest()

    return read


def _seeds(messages: tuple[Any, ...]) -> tuple[bytes, ...]:
    whole = [b"\0" + msgspec.msgpack.encode(message) for message in messages]
    edits = [bytes([2, i, 2, 1, 3, 5, 7, 9, 11]) for i in range(len(messages))]
    return *whole, *edits, b"\1\0\1\2\3\4"


class _Link:
    """The agent's end: what it sends has to be readable at the other end."""

    def __init__(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(FromAgent)

    def send(self, message: FromAgent) -> None:
        self._decoder.decode(msgspec.msgpack.encode(message))

    def receive(self, wait: bool) -> list[ToAgent]:
        return []

    def close(self) -> None: ...


def to_agent(scratch: Path) -> Target:
    """Frames to an agent that holds a real engine of two tiny models; then some turns."""
    logging.getLogger("blockllm.cluster.zmq_link").setLevel(logging.ERROR)
    zoo = makings.zoo(scratch)
    settings = EngineSettings(
        device="cpu", memory="64MiB", dtype="float32", max_sequences=8, threads=1, max_waiting=16
    )
    engine = Engine(zoo, None, settings)
    agent = Agent(Loaded(engine, fingerprints(zoo.chains())), _Link())
    codec, decoder, read = Codec(), msgspec.msgpack.Decoder(ToAgent), _reader(TO_AGENT)

    def run(data: bytes) -> None:
        message = codec.decode(decoder, read(data))
        if message is None:
            raise EngineError("dropped")
        agent._take(message)
        for _ in range(TURNS):
            if engine.has_work:
                agent._turn()
        if isinstance(message, Submit):
            engine.cancel(message.request.id)
        if not engine.has_work:
            engine.check_books()

    return Target(_seeds(TO_AGENT), run, 512)


def from_agent(_scratch: Path) -> Target:
    """Frames to a front end: routed to requests, errors made of what they name."""
    logging.getLogger("blockllm.cluster.zmq_link").setLevel(logging.ERROR)
    codec, decoder, read = Codec(), msgspec.msgpack.Decoder(FromAgent), _reader(FROM_AGENT)
    items: list[Item] = []

    def sink(item: Item, made: float = 0.0) -> None:
        items.append(item)

    def run(data: bytes) -> None:
        message = codec.decode(decoder, read(data))
        if message is None:
            raise EngineError("dropped")
        streams = Streams()
        streams.open("r", sink)
        if isinstance(message, Tokens | Refused):
            streams.deliver(message)
        elif isinstance(message, Failed):
            streams.fail_all(error_of(message.kind, message.message))
        elif isinstance(message, Progress):
            str(message)
        items.clear()

    return Target(_seeds(FROM_AGENT), run, 512)


def chains(scratch: Path) -> Target:
    """Pinned chains as an agent reads them from its parent."""
    intact = encode_chains(makings.zoo(scratch).chains().values())
    plain = msgspec.msgpack.decode(intact, strict=False)
    words = words_of([plain])

    def run(data: bytes) -> None:
        draws = Draws(data)
        kind = draws.below(3)
        if kind == 0:
            frame = draws.rest()
        elif kind == 1:
            frame = flipped(intact, draws)
        else:
            try:
                frame = msgspec.msgpack.encode(edited(plain, draws, words))
            except (OverflowError, UnicodeEncodeError, ValueError):
                return
        for chain in decode_chains(frame).values():
            list(chain.tensors())

    return Target((b"\1\3\x09\x09\0\1", b"\2\1\2\3\4\5\6\7", b"\0\x93\x80\x80\x90"), run, 2048)
