"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from blockllm.api.errors import describe, error_response

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]

_encoder = msgspec.json.Encoder()


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

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        self._events = events

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
            await send({"type": "http.response.body", "body": first, "more_body": True})
            try:
                async for events in self._events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                ending = DONE
            except Exception as error:
                ending = encode_events([describe(error)[1]]) + DONE
            await send({"type": "http.response.body", "body": ending, "more_body": False})
