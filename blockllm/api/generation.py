"""All requests of one call, from submission to the last piece of text."""

from __future__ import annotations

import itertools
import queue
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import Protocol

import msgspec

from blockllm.api.choice import Choice, Piece, TextRules
from blockllm.api.tokenizer import TokenTable
from blockllm.cluster.streams import Backlog, Item, Mailbox, Sink
from blockllm.core import Request, Sampling, TokenEvent
from blockllm.errors import RequestError


class AgentPort(Protocol):
    """Where requests go: a Supervisor, or a LocalAgent."""

    def submit(self, request: Request, sink: Sink) -> None: ...
    def cancel(self, request_id: str) -> None: ...


class Timer(Protocol):
    """Measures one request; blockllm.observability.metrics.RequestTimer is one."""

    def admitted(self, queue_seconds: float) -> None: ...
    def tokens(self, count: int) -> None: ...
    def end(self, reason: str) -> None: ...


class Generation:
    """Use as a context manager: leaving it cancels whatever has not ended.

    `made` is the agent's clock when the oldest token of the last pieces came to be.
    With n answers per prompt, the choices of prompt p are p·n … p·n + n-1, as OpenAI counts.
    """

    def __init__(
        self,
        agent: AgentPort,
        choices: Sequence[Choice],
        timers: Sequence[Timer] = (),
        backlog: Backlog | None = None,
    ) -> None:
        """`backlog` counts what waits for this reader; too much ends the requests (Overloaded)."""
        self.choices = choices
        self.made = 0.0
        self._agent = agent
        self._by_id = {choice.request.id: choice for choice in choices}
        self._timers = dict(zip(self._by_id, timers, strict=False))
        self._unfinished = len(choices)
        self._mailbox = Mailbox(backlog, self._cancel)

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        frames: TracebackType | None,
    ) -> None:
        if isinstance(error, RequestError):
            self._timers.clear()  # refused, so it never became a request to be counted
        left = "error" if isinstance(error, Exception) else "abort"
        self._mailbox.close()
        self._cancel()
        for choice in self.choices:
            self._end_timer(choice, left)

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Everything new at each wake-up, at most one piece per choice."""
        self._submit(self._mailbox.put)
        while self._unfinished:
            items = await self._mailbox.take()
            self.made = self._mailbox.made
            yield self._feed(items)

    def pieces_blocking(self) -> Iterator[list[Piece]]:
        """As `pieces`, for callers without an event loop."""
        items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._submit(lambda item, made=0.0: items.put(item))
        while self._unfinished:
            batch = [items.get()]
            while not items.empty():  # this thread is the only reader
                batch.append(items.get())
            yield self._feed(batch)

    async def collect(self) -> list[list[Piece]]:
        """All pieces of each choice, when the last has ended."""
        collected: list[list[Piece]] = [[] for _ in self.choices]
        async for pieces in self.pieces():
            _sort(pieces, collected)
        return collected

    def collect_blocking(self) -> list[list[Piece]]:
        """As above, for callers without an event loop."""
        collected: list[list[Piece]] = [[] for _ in self.choices]
        for pieces in self.pieces_blocking():
            _sort(pieces, collected)
        return collected

    def _submit(self, sink: Sink) -> None:
        for choice in self.choices:
            self._agent.submit(choice.request, sink)

    def _cancel(self) -> None:
        for choice in self.choices:
            if not choice.engine_finished:
                self._agent.cancel(choice.request.id)

    def _feed(self, items: Sequence[Item]) -> list[Piece]:
        pieces: dict[str, Piece] = {}
        for item in items:
            if not isinstance(item, TokenEvent):
                raise item
            choice = self._by_id[item.request]
            piece = pieces.get(item.request)
            if piece is None:
                piece = pieces[item.request] = Piece(choice.index)
            if item.queue_seconds and item.request in self._timers:
                self._timers[item.request].admitted(item.queue_seconds)
            if choice.feed(item, piece):
                self._unfinished -= 1
                if not choice.engine_finished:  # it was a stop string, which only we know of
                    self._agent.cancel(item.request)
        shown = []
        for request_id, piece in pieces.items():
            if piece.token_ids and request_id in self._timers:
                self._timers[request_id].tokens(len(piece.token_ids))
            if piece.finish_reason is not None:
                self._end_timer(self._by_id[request_id], piece.finish_reason)
            if piece.token_ids or piece.finish_reason:
                shown.append(piece)
        return shown

    def _end_timer(self, choice: Choice, reason: str) -> None:
        timer = self._timers.pop(choice.request.id, None)
        if timer is not None:
            timer.end(reason)


def _sort(pieces: Sequence[Piece], collected: Sequence[list[Piece]]) -> None:
    for piece in pieces:
        collected[piece.index].append(piece)


def make_choices(
    template: Request,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    n: int,
    tokenizer: TokenTable,
    rules: TextRules,
) -> list[Choice]:
    """n requests per prompt; `template` has what they all share, `samplings` one per prompt.

    With a seed, choice i of a prompt has seed + i, so that it can be asked for alone.
    """
    base = uuid.uuid4().hex
    choices: list[Choice] = []
    for (prompt, sampling), i in itertools.product(zip(prompts, samplings, strict=True), range(n)):
        index = len(choices)
        if sampling.seed is not None and i:
            seed = (sampling.seed + i + 2**63) % 2**64 - 2**63
            sampling = msgspec.structs.replace(sampling, seed=seed)
        request = msgspec.structs.replace(
            template, id=f"{base}-{index}", prompt=tuple(prompt), sampling=sampling
        )
        choices.append(Choice(index, request, tokenizer, rules))
    return choices
