"""The front door on real sockets: deadlines, bounds, and errors in one shape."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from blockllm.api.protocol import MAX_HEAD_BYTES, Limits, bounded_protocol

QUICK = Limits(head=0.2, body=0.2, reader=0.3, connections=3)
OTHER_VERSIONS = (b"0.9", b"1.2", b"2.0", b"9.9")
Open = tuple[asyncio.StreamReader, asyncio.StreamWriter]
CHUNKED = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


class App:
    """Answers after the body, `/early` before it; `/endless` writes for ever. Notes how each call
    ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.headers = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        while message.get("more_body") and scope["path"] != "/early":
            message = await receive()
        self.ended.append(message["type"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = {"type": "http.response.body", "body": b"x" * 65536, "more_body": True}
        while scope["path"] == "/endless":
            await send(body)
            await asyncio.sleep(0)
            if await self._gone(receive):
                self.ended.append("gone")
                return
        self.headers = len(scope["headers"])
        await send({"type": "http.response.body", "body": b"done"})

    async def _gone(self, receive: Receive) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.001):
                return (await receive())["type"] == "http.disconnect"
        return False


@contextlib.asynccontextmanager
async def door(app: App, limits: Limits = QUICK) -> AsyncIterator[Callable[[], Awaitable[Open]]]:
    config = uvicorn.Config(
        app, http=bounded_protocol(limits), ws="none", lifespan="off", log_config=None,
        timeout_keep_alive=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config.timeout_graceful_shutdown = 1
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        yield lambda: asyncio.open_connection(*listener.getsockname())
        server.should_exit = True
        await serving


def ask(data: bytes, limits: Limits = QUICK, app: App | None = None) -> bytes:
    """All that the server answers until it closes."""

    async def run() -> bytes:
        async with door(app or App(), limits) as connect:
            reader, writer = await connect()
            writer.write(data)
            try:
                async with asyncio.timeout(3):
                    return await reader.read()
            finally:
                writer.transport.abort()

    return asyncio.run(run())


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def test_trailers_are_bounded_and_not_kept() -> None:
    app = App()
    ask(CHUNKED + b"0\r\nX-T: 1\r\n\r\n" + b"GET / HT", app=app)
    assert app.headers == 2
    status, message = error_of(ask(CHUNKED + b"0\r\n" + b"X-T: 1\r\n" * 9_000, Limits()))
    assert (status, "trailers" in message) == (400, True)


@pytest.mark.parametrize("start", [b"", b"GET / HT", CHUNKED, CHUNKED + b"5\r\nab"])
def test_a_part_that_does_not_end_in_time_is_told_so(start: bytes) -> None:
    status, message = error_of(ask(start))
    assert status == 408 and ("body" if CHUNKED in start else "head") in message


@pytest.mark.parametrize("start", [b"nonsense", *(b"GET / HTTP/" + v for v in OTHER_VERSIONS)])
def test_parser_errors_are_openai_errors(start: bytes) -> None:
    assert error_of(ask(start + b"\r\nhost: a\r\n\r\n"))[0] == 400


@pytest.mark.parametrize(("size", "status"), [(60_000, b"200"), (MAX_HEAD_BYTES + 1, b"400")])
def test_the_head_limit_is_exact(size: int, status: bytes) -> None:
    head = b"GET / HTTP/1.1\r\nconnection: close\r\nx: " + b"a" * size + b"\r\n\r\n"
    assert ask(head).split()[1] == status


def test_bytes_of_a_body_are_not_counted_to_the_next_head() -> None:
    first = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 70000\r\n\r\n" + b"b" * 70_000
    answer = ask(first + b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
    assert answer.count(b"200 OK") == 2


def test_a_body_that_ends_behind_its_answer_leaves_no_connection_open() -> None:
    async def run() -> bytes:
        async with door(App()) as connect:
            reader, writer = await connect()
            writer.write(b"POST /early HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\na")
            answer = await reader.readuntil(b"0\r\n\r\n")
            writer.write(b"b")
            async with asyncio.timeout(3):
                return answer + await reader.read()

    assert asyncio.run(run()).count(b"200 OK") == 1


def test_more_connections_with_requests_than_the_limit_are_refused() -> None:
    app = App()

    async def run() -> tuple[bytes, bytes]:
        async with door(app) as connect:
            held = [await connect() for _ in range(QUICK.connections)]
            for reader, writer in held:
                writer.write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
                await reader.read(1)
            extra = await connect()
            refused = await extra[0].read()
            for _, writer in (*held, extra):
                writer.transport.abort()
            while app.ended.count("gone") < len(held):
                await asyncio.sleep(0.01)
            reader, writer = await connect()
            writer.write(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n")
            return refused, await reader.read()

    refused, served = asyncio.run(run())
    assert error_of(refused)[0] == 503 and b"200 OK" in served


def test_the_longest_silent_connection_gives_its_place() -> None:
    async def run() -> None:
        async with door(App(), Limits(connections=4)) as connect:
            served, begun, fresh, busy = opened = [await connect() for _ in range(4)]
            begun[1].write(b"GET / HTTP/1.1\r\nhost")  # no request yet
            busy[1].write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
            await busy[0].read(1)
            served[1].write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")  # silent since a moment
            await served[0].readuntil(b"0\r\n\r\n")
            for expected in (begun, fresh, served):
                opened.append(await connect())
                opened[-1][1].write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
                async with asyncio.timeout(2):
                    assert await expected[0].read() == b""
                    assert await opened[-1][0].read(1)
            assert await busy[0].read(1)
            for _, writer in opened:
                writer.transport.abort()

    asyncio.run(run())


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("count", [1, 2])
def test_a_client_that_does_not_read_or_half_closes_is_ended(count: int, half_closed: bool) -> None:
    app = App()

    async def run() -> None:
        async with door(app) as connect:
            _, writer = await connect()
            writer.transport.pause_reading()
            writer.write(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n" * count)
            await asyncio.sleep(0.1)
            if half_closed:
                writer.write_eof()
            async with asyncio.timeout(3):
                while "gone" not in app.ended:
                    await asyncio.sleep(0.02)
            writer.transport.abort()

    asyncio.run(run())
