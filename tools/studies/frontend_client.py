"""A client that costs little: raw connections that count events and never parse JSON."""

from __future__ import annotations

import asyncio
import json
import time
from typing import NamedTuple, cast

EVENT, STREAM_END = b"data: ", b"0\r\n\r\n"
MAX_ANSWER_BYTES = 32768


class ClientLoad(NamedTuple):
    """One kind of traffic: `streams` connections, each asking again as soon as it is answered.

    Unless `in_step`, each has another length around `max_tokens`, so that they do not end together.
    """

    streams: int
    max_tokens: int
    stream: bool = True
    in_step: bool = False
    prompt_words: int = 100

    def length(self, index: int) -> int:
        """Tokens that connection `index` asks for."""
        spread = self.max_tokens // 4
        if self.in_step or not spread:
            return self.max_tokens
        return self.max_tokens - spread + index * 37 % (2 * spread + 1)


class Seen(NamedTuple):
    """What the client saw between the start and the end of the measured time."""

    requests: int
    tokens: int  # of the requests that ended
    events: int
    seconds: float


def request_bytes(model: str, load: ClientLoad, max_tokens: int) -> bytes:
    """One chat request as HTTP."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "every word of this " * (load.prompt_words // 4)}],
        "max_tokens": max_tokens,
        "stream": load.stream,
        "ignore_eos": True,
    }
    data = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


class Connection(asyncio.Protocol):
    """Asks, counts what comes, asks again."""

    def __init__(self, request: bytes, length: int, streamed: bool) -> None:
        self.length = length
        self.requests = self.events = 0
        self.problem = ""
        self._request = request
        self._streamed = streamed
        self._tail = b""
        self._kept = len(STREAM_END) if streamed else MAX_ANSWER_BYTES

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._tail and not data.startswith(b"HTTP/1.1 200"):
            self.problem = data[:300].decode("latin-1")
            self._transport.close()
            return
        self.events += data.count(EVENT)
        self._tail = (self._tail + data)[-self._kept :]
        if self._is_complete():
            self.requests += 1
            self._tail = b""
            self._transport.write(self._request)

    def _is_complete(self) -> bool:
        if self._streamed:
            return self._tail.endswith(STREAM_END)
        head, separator, body = self._tail.partition(b"\r\n\r\n")
        if not separator:
            return False
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return len(body) >= length

    def close(self) -> None:
        """End the connection, whatever it is waiting for."""
        self._transport.abort()


class Traffic:
    """All connections of one load. Raises RuntimeError when the server answers wrongly."""

    def __init__(self, port: int, model: str, load: ClientLoad) -> None:
        self._port = port
        self._load = load
        self._model = model
        self._connections: list[Connection] = []

    async def start(self) -> None:
        """Open all connections."""
        loop = asyncio.get_running_loop()
        for index in range(self._load.streams):
            length = self._load.length(index)
            request = request_bytes(self._model, self._load, length)
            connection = Connection(request, length, self._load.stream)
            await loop.create_connection(lambda c=connection: c, "127.0.0.1", self._port)
            self._connections.append(connection)

    async def watch(self, seconds: float) -> Seen:
        """Let it run for a while."""
        before, started = self._counts(), time.monotonic()
        await asyncio.sleep(seconds)
        after, ended = self._counts(), time.monotonic()
        return Seen(*(b - a for a, b in zip(before, after, strict=True)), ended - started)

    def close(self) -> None:
        """End all connections."""
        for connection in self._connections:
            connection.close()

    def _counts(self) -> tuple[int, int, int]:
        problem = next((c.problem for c in self._connections if c.problem), "")
        if problem:
            raise RuntimeError(f"the server answered: {problem}")
        return (
            sum(c.requests for c in self._connections),
            sum(c.requests * c.length for c in self._connections),
            sum(c.events for c in self._connections),
        )
