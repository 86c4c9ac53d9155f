"""One request to an OpenAI-compatible server, and what became of it."""

from __future__ import annotations

import time
from typing import Any

import aiohttp
import msgspec

from blockllm.bench.sse import Chunk, EventReader
from blockllm.bench.workload import Planned

_SHOWN = 300  # characters of an error's text that are kept


class Target(msgspec.Struct, frozen=True):
    """Where requests of one model go, and what goes into their bodies besides the usual."""

    url: str  # of the server, without /v1
    model: str  # as the server calls it
    extra_body: dict[str, Any] = {}
    token_ids: bool = False  # ask for `return_token_ids`


class Outcome(msgspec.Struct):
    """What was seen of one request. Clocks are seconds; `sent` counts from the run's start."""

    index: int
    model: str
    tenant: str
    sent: float
    lag: float = 0.0  # seconds between the planned and the real time of sending
    arrivals: list[float] = []  # of chunks with tokens, after sending
    end: float = 0.0  # of the last byte, after sending
    tokens: int = 0  # output tokens: the server's usage, else the chunks with tokens
    prompt_tokens: int = 0
    asked: int = 0  # output tokens asked for
    text: str = ""
    token_ids: list[int] = []
    error: str = ""  # kind of failure: http-503, timeout, connection, cut, garbage, server
    detail: str = ""  # its message


class StreamFailed(Exception):
    """The server ended a request in another way than by its last token; `kind` as in Outcome."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def body_of(planned: Planned, target: Target) -> bytes:
    """JSON of the request: greedy, streamed, running to its length."""
    fields: dict[str, Any] = {
        "model": target.model,
        "prompt": planned.prompt,
        "max_tokens": planned.output_tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    if target.token_ids:
        fields["return_token_ids"] = True
    return msgspec.json.encode(fields | target.extra_body)


async def ask(
    session: aiohttp.ClientSession, planned: Planned, target: Target, key: str, began: float
) -> Outcome:
    """Send one request and read its answer to the end. Failures become `error`, never exceptions.

    `began`: clock of the run's start; `key`: API key or "".
    """
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    body = body_of(planned, target)
    start = time.perf_counter()
    outcome = Outcome(
        planned.index,
        planned.model,
        planned.tenant,
        sent=start - began,
        prompt_tokens=planned.prompt_tokens,
        asked=planned.output_tokens,
    )
    try:
        async with session.post(
            target.url + "/v1/completions", data=body, headers=headers
        ) as response:
            if response.status != 200:
                raise StreamFailed(f"http-{response.status}", await response.text())
            await _read(response.content, outcome, start)
    except TimeoutError:
        outcome.error, outcome.detail = "timeout", "no end within the timeout"
    except StreamFailed as error:
        outcome.error, outcome.detail = error.kind, str(error)[:_SHOWN]
    except aiohttp.ClientPayloadError as error:
        outcome.error, outcome.detail = "cut", str(error)[:_SHOWN]
    except (aiohttp.ClientError, OSError) as error:
        outcome.error, outcome.detail = "connection", str(error)[:_SHOWN]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        outcome.error, outcome.detail = "garbage", str(error)[:_SHOWN]
    outcome.end = time.perf_counter() - start
    return outcome


async def _read(content: aiohttp.StreamReader, outcome: Outcome, start: float) -> None:
    reader = EventReader()
    texts: list[str] = []
    finished = False
    async for data in content.iter_any():
        now = time.perf_counter() - start
        for chunk in reader.feed(data):
            if chunk.error is not None:
                raise StreamFailed("server", str(chunk.error))
            finished |= any(choice.finish_reason for choice in chunk.choices)
            _note(chunk, outcome, texts, now)
    outcome.text = "".join(texts)
    outcome.tokens = outcome.tokens or len(outcome.token_ids) or len(outcome.arrivals)
    if not (finished and reader.is_done):
        raise StreamFailed("cut", f"the stream ended after {outcome.tokens} tokens without its end")
    if outcome.tokens and not outcome.arrivals:  # nothing but invisible tokens
        outcome.arrivals.append(time.perf_counter() - start)


def _note(chunk: Chunk, outcome: Outcome, texts: list[str], now: float) -> None:
    if chunk.usage is not None:
        outcome.tokens = chunk.usage.completion_tokens
        outcome.prompt_tokens = chunk.usage.prompt_tokens or outcome.prompt_tokens
    for choice in chunk.choices:
        if choice.text or choice.token_ids:
            outcome.arrivals.append(now)
        if choice.text:
            texts.append(choice.text)
        if choice.token_ids:
            outcome.token_ids += choice.token_ids
