"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blockllm.api.errors import describe, error_response

T = TypeVar("T")
STALL_SECONDS = 0.05  # writing takes microseconds, unless the client does not take its bytes
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encoder = msgspec.json.Encoder()


class StreamWrite(msgspec.Struct, gc=False):
    """Bytes of one write; `made`: clock of the oldest token in them, 0 when not measured."""

    body: bytes
    made: float = 0.0


class TextFrames:
    """Events that differ in one text field only: everything around it is encoded once per choice,
    when its first plain event comes."""

    def __init__(self, make: Callable[[int], msgspec.Struct], field: str) -> None:
        """`make` gives a choice's event without text; no other place of its JSON can look like
        the empty `field`."""
        self._make = make
        self._name = b'"%b":' % field.encode()
        self._frames: dict[int, tuple[bytes, bytes]] = {}

    def event(self, index: int, text: str) -> bytes:
        """One event of a choice; nothing while its text is held back."""
        if not text:
            return b""
        frame = self._frames.get(index)
        if frame is None:
            frame = self._frames[index] = self._frame(self._make(index))
        return frame[0] + _encoder.encode(text) + frame[1]

    def _frame(self, struct: msgspec.Struct) -> tuple[bytes, bytes]:
        before, _, after = _encoder.encode(struct).partition(self._name + b'""')
        return b"data: " + before + self._name, after + b"\n\n"


def encode_events(structs: Sequence[msgspec.Struct]) -> bytes:
    """One `data:` event per struct."""
    return b"".join(b"data: %b\n\n" % _encoder.encode(struct) for struct in structs)


async def until_disconnect(work: Awaitable[T], receive: Receive) -> T:
    """Do `work`; when the client leaves first, cancel it and raise ClientDisconnect."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        leaving.cancel()
        if not doing.done():
            doing.cancel()
            await asyncio.wait({doing})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends what a generator yields, as it comes.

    An error before the first event is an ordinary error answer; a later one is an event of its
    own. Either way the generator is closed, and with it what it holds.
    """

    def __init__(
        self, events: AsyncGenerator[StreamWrite, None], observe: Callable[[float], None]
    ) -> None:
        """`observe` is told how many seconds after its making each event was written."""
        super().__init__()
        self._events = events
        self._observe = observe
        self._resumed = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientDisconnect):
            await until_disconnect(self._pump(scope, receive, send), receive)

    async def _pump(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with contextlib.aclosing(self._events):
            try:
                first = await anext(self._events)
            except Exception as error:
                return await error_response(error)(scope, receive, send)
            await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
            await self._send(first, send)
            try:
                async for write in self._events:
                    await self._send(write, send)
                ending = DONE
            except Exception as error:
                ending = encode_events([describe(error)[1]]) + DONE
            await send({"type": "http.response.body", "body": ending, "more_body": False})

    async def _send(self, write: StreamWrite, send: Send) -> None:
        begun = time.monotonic()
        await send({"type": "http.response.body", "body": write.body, "more_body": True})
        ended = time.monotonic()
        if ended - begun > STALL_SECONDS:  # what waited meanwhile waited for the client
            self._resumed = ended
        elif write.made:
            self._observe(ended - max(write.made, self._resumed))
