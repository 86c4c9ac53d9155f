"""Reading a completion stream: bytes in, chunks out, each byte looked at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec


class Choice(msgspec.Struct):
    """One answer's news; what is not measured is not decoded."""

    text: str | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class Usage(msgspec.Struct):
    """Token counts as the server made them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


class Chunk(msgspec.Struct):
    """One event of `POST /v1/completions` with `stream`."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class EventReader:
    """Joins reads into lines. Raises msgspec.DecodeError for an event that is not such a chunk."""

    def __init__(self) -> None:
        self._tail = b""
        self._decoder = msgspec.json.Decoder(Chunk)
        self.is_done = False  # `[DONE]` was read

    def feed(self, data: bytes) -> Iterator[Chunk]:
        """Chunks completed by `data`. Servers send each event's JSON on one `data:` line."""
        *lines, self._tail = (self._tail + data).split(b"\n") if self._tail else data.split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            body = line[5:].strip()
            if body == b"[DONE]":
                self.is_done = True
            elif body:
                yield self._decoder.decode(body)
