"""HTTP parsing with the bounds and deadlines that uvicorn's parser does not have, and a clock."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar, NamedTuple, cast

import httptools
import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from blockllm.api.errors import HttpError, describe

MAX_HEAD_BYTES = 64 * 1024  # request line and headers; trailers and chunk lines apart
VERSIONS = ("1.0", "1.1")  # the parser takes others, whose connections end otherwise
_SLICE = 4096  # bytes given to the parser at once: what it collects unseen is no longer
_LINE_BYTES = 4  # ": " and the line's end


class Limits(NamedTuple):
    """Deadlines in seconds, from the first byte of each part, and connections at once."""

    head: float = 20.0
    body: float = 60.0
    reader: float = 30.0  # for a client to take what waits for it
    connections: int = 4096


class _Quiet:
    """A transport that passes over what is written behind its end, as asyncio's do: uvloop's raise,
    and a client that has gone would look like a fault of ours."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections whose head, body or trailers do not end, and clients that do not read. When
    there are too many connections, the one that has had no request for longest gives its place.

    Notes in the scope's state when a request's last byte came: `received`, monotonic clock.
    """

    limits = Limits()
    silent: ClassVar[dict[BoundedProtocol, None]]  # those without a request, the longest so first
    _in_head = _in_body = _moved = False
    _idle_bytes = 0  # bytes since the last that began a message, were body, or ended it
    _deadline: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None
    _cycles: tuple[RequestResponseCycle, ...] = ()  # not answered yet; uvicorn knows the last only

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _Quiet(transport)))
        if len(self.connections) > self.limits.connections:
            if not self.silent:
                return self._refuse(503, "too many connections; try again later")
            next(iter(self.silent)).give_place()
        self.silent[self] = None
        self._expect(self.limits.head)

    def give_place(self) -> None:
        """Close for another connection; an answer that the client still reads goes out first."""
        del self.silent[self]
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.silent.pop(self, None)
        self._expect(None)
        self._stop_reader_clock()
        for cycle in self._cycles:  # of pipelined requests, the first is the one that runs
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None:
            self._expect(self.limits.head)
        for start in range(0, len(data), _SLICE):
            if self.transport.is_closing():
                return
            piece, self._moved = data[start : start + _SLICE], False
            super().data_received(piece)
            self._idle_bytes = 0 if self._moved else self._idle_bytes + len(piece)
            if self._idle_bytes > MAX_HEAD_BYTES:
                part = "trailers" if self._in_body else "head"
                self._refuse(400, f"request {part}: longer than {MAX_HEAD_BYTES} bytes")
        self._keep_clock()

    def on_message_begin(self) -> None:
        self._in_head = self._moved = True
        self._expect(self.limits.head)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are not kept
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.get_http_version() not in VERSIONS:
            raise httptools.HttpParserError("another version of HTTP")
        lines = (len(name) + len(value) + _LINE_BYTES for name, value in self.headers)
        if len(self.url) + sum(lines) > MAX_HEAD_BYTES:
            raise httptools.HttpParserError(f"head longer than {MAX_HEAD_BYTES} bytes")
        self._in_head, self._in_body, self._moved = False, True, True
        self._expect(self.limits.body)
        self.silent.pop(self, None)
        super().on_headers_complete()
        waiting = (cycle for cycle in self._cycles if not cycle.response_complete)
        self._cycles = (*waiting, self.cycle)

    def on_body(self, body: bytes) -> None:
        self._moved = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body, self._moved = False, True
        self._expect(None)
        self.scope["state"]["received"] = time.monotonic()
        super().on_message_complete()
        self._note_silence()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_silence()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reading = self.loop.call_later(self.limits.reader, self.transport.abort)

    def resume_writing(self) -> None:
        self._stop_reader_clock()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, f"{msg} Expected HTTP/1.1, a head of at most {MAX_HEAD_BYTES} bytes")

    def _stop_reader_clock(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _expect(self, seconds: float | None) -> None:
        """The part that begins now has to end in time; None: no part is open."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._expire, seconds) if seconds else None

    def _keep_clock(self) -> None:
        """Begin to count idle time anew where a body ended behind its answer: its bytes stopped
        the clock that the answer had started."""
        has_clock = self._deadline is not None or self.timeout_keep_alive_task is not None
        if not (has_clock or self._answering() or self.transport.is_closing()):
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _expire(self, seconds: float) -> None:
        if self.flow.read_paused or (self._answering() and not self._in_body):
            return self._expect(seconds)  # it waits for us
        part = "body" if self._in_body else "head"
        self._refuse(408, f"request {part}: did not end within {seconds:g} s")

    def _note_silence(self) -> None:
        if not (self._in_body or self._answering() or self.transport.is_closing()):
            self.silent[self] = None

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, message: str) -> None:
        """Close, after an error object unless part of another answer may be on its way."""
        begun = self._answering() and (self.cycle.response_started or not self._in_body)
        if not self.transport.is_closing() and not begun:
            body = msgspec.json.encode(describe(HttpError(status, message))[1])
            head = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + b"connection: close\r\n\r\n" + body)
        self.transport.close()


def bounded_protocol(given: Limits) -> type[BoundedProtocol]:
    """The protocol with these limits, as uvicorn takes it: a class."""

    class Bounded(BoundedProtocol):
        limits = given
        silent: ClassVar[dict[BoundedProtocol, None]] = {}

    return Bounded
