"""The completion API, streamed, in front of a library that has no server: what is needed to send it
the same requests as other servers. Greedy only; prompts are token ids; answers run to their length.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

import msgspec
from aiohttp import web


class Body(msgspec.Struct):
    """What is read of a request."""

    model: str
    prompt: list[int]
    max_tokens: int = 16


class Job(NamedTuple):
    """A request, and where its tokens go; None ends them."""

    body: Body
    tokens: asyncio.Queue[int | None]


class Backend(Protocol):
    """A library that generates."""

    def decode(self, model: str, tokens: list[int]) -> str:
        """The text of these token ids. Raises KeyError if there is no such model."""

    def submit(self, job: Job) -> None:
        """Take a job for a model that there is; its tokens come while `work` runs."""

    async def work(self) -> None:
        """Generate until cancelled."""


class PeerServer:
    """`POST /v1/completions` and `GET /health` of one backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions, streamed."""
        body = msgspec.json.decode(await request.read(), type=Body)
        try:
            self._backend.decode(body.model, [])
        except KeyError:
            raise web.HTTPNotFound(text=f"no model {body.model!r}") from None
        job = Job(body, asyncio.Queue())
        self._backend.submit(job)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._stream(job, response)
        return response

    async def _stream(self, job: Job, response: web.StreamResponse) -> None:
        given: list[int] = []
        text, said = "", 0
        while (token := await job.tokens.get()) is not None:
            given.append(token)
            text = self._backend.decode(job.body.model, given)
            until = said if text.endswith("\ufffd") else len(text)  # part of a character
            await _send(response, _choice(text[said:until], token_ids=[token]))
            said = until
        await _send(response, _choice(text[said:], finish_reason="length"))
        usage = {"prompt_tokens": len(job.body.prompt), "completion_tokens": len(given)}
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")

    async def health(self, request: web.Request) -> web.Response:
        """GET /health: the models are loaded before the port is taken."""
        return web.Response()


def _choice(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, **more}]}


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")


async def serve(backend: Backend, port: int) -> None:
    """Until it is cancelled or the process is ended."""
    server, app = PeerServer(backend), web.Application()
    app.router.add_post("/v1/completions", server.complete)
    app.router.add_get("/health", server.health)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await backend.work()
    finally:
        await runner.cleanup()


def read_folders(words: Iterable[str]) -> dict[str, str]:
    """`name=folder` pairs."""
    return dict(word.partition("=")[::2] for word in words)


def options(description: str) -> argparse.ArgumentParser:
    """What the command lines of all backends have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=0)
    return parser
