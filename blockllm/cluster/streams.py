"""Routes what an agent reports to the requests that wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from blockllm.cluster.messages import Refused, Tokens
from blockllm.core import TokenEvent
from blockllm.errors import BlockllmError, Overloaded, error_of

READ_ON = "read the stream faster, or ask for fewer answers at once"

Item = TokenEvent | BlockllmError  # an error ends every request of its reader


class Sink(Protocol):
    """Takes one item; `made` is the agent's clock when it came to be, 0 when not measured."""

    def __call__(self, item: Item, made: float = 0.0) -> None: ...


class Backlog:
    """What waits in the mailboxes of all clients: tokens and log-probabilities, at most so many.

    When it is full, the mailbox with the most gives up, so clients that read keep their answers.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._filled: set[Mailbox] = set()

    def __len__(self) -> int:
        return self._count

    def add(self, mailbox: Mailbox, count: int) -> None:
        """So much more waits there."""
        self._count += count
        self._filled.add(mailbox)
        if self._count > self._most:
            max(self._filled, key=len).give_up()

    def remove(self, mailbox: Mailbox) -> None:
        """All that waits there was taken or dropped."""
        self._count -= len(mailbox)
        self._filled.discard(mailbox)


class Mailbox:
    """Where events of one client's requests wait. One reader; filled on the reader's event loop.

    `made` is the clock of the oldest item that the last take() returned.
    """

    def __init__(
        self, backlog: Backlog | None = None, on_give_up: Callable[[], None] = lambda: None
    ) -> None:
        """`backlog` counts what waits; `on_give_up` is called when it is too much."""
        self.made = 0.0
        self._backlog, self._on_give_up = backlog, on_give_up
        self._items: list[Item] = []
        self._count = 0  # tokens and log-probabilities in them
        self._open = True
        self._oldest = 0.0
        self._reader: asyncio.Future[None] | None = None  # set while it waits

    def __len__(self) -> int:
        return self._count

    def put(self, item: Item, made: float = 0.0) -> None:
        if not self._open:
            return
        if not self._items:
            self._oldest = made
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
        self._items.append(item)
        if self._backlog is not None:
            count = _values(item)
            self._count += count
            self._backlog.add(self, count)

    async def take(self) -> list[Item]:
        """Everything that arrived since the last call, at least one item."""
        if not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        items = self._empty()
        self.made = self._oldest
        return items

    def close(self) -> None:
        """Drop what waits, and all that comes."""
        self._empty()
        self._open = False

    def give_up(self) -> None:
        """Drop what waits: the reader takes too little of it, and gets an error instead."""
        count = self._count
        self._empty()
        self.put(Overloaded(f"{count} tokens and log-probabilities waited to be read: {READ_ON}"))
        self._open = False
        self._on_give_up()

    def _empty(self) -> list[Item]:
        if self._backlog is not None:
            self._backlog.remove(self)
        items, self._items, self._count = self._items, [], 0
        return items


def _values(item: Item) -> int:
    """Tokens and log-probabilities of an item; an error is one, too."""
    if isinstance(item, BlockllmError) or item.logprobs is None:
        return 1
    return 1 + len(item.logprobs.top)


class Streams:
    """Requests in flight and their sinks. Cost per event is one dictionary look-up."""

    def __init__(self) -> None:
        self._sinks: dict[str, Sink] = {}

    def __len__(self) -> int:
        return len(self._sinks)

    def open(self, request_id: str, sink: Sink) -> None:
        self._sinks[request_id] = sink

    def close(self, request_id: str) -> bool:
        """Forget a request; False when it had ended already."""
        return self._sinks.pop(request_id, None) is not None

    def deliver(self, message: Tokens | Refused) -> None:
        """Hand events to their sinks; events of forgotten requests are dropped."""
        if isinstance(message, Refused):
            sink = self._sinks.pop(message.request, None)
            if sink is not None:
                sink(error_of(message.kind, message.message, message.param))
            return
        for event in message.events:
            sink = self._sinks.get(event.request)
            if sink is None:
                continue
            if event.finish is not None:
                del self._sinks[event.request]
            sink(event, message.made)

    def fail_all(self, error: BlockllmError) -> None:
        """End every request with this error."""
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink(error)
