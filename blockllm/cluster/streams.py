"""Routes what an agent reports to the requests that wait for it."""

from __future__ import annotations

import asyncio
from typing import Protocol

from blockllm.cluster.messages import Refused, Tokens
from blockllm.core import TokenEvent
from blockllm.errors import BlockllmError, error_of

Item = TokenEvent | BlockllmError  # an error ends every request of its reader


class Sink(Protocol):
    """Takes one item; `made` is the agent's clock when it came to be, 0 when not measured."""

    def __call__(self, item: Item, made: float = 0.0) -> None: ...


class Mailbox:
    """Where events of one client's requests wait. One reader; filled on the reader's event loop.

    `made` is the clock of the oldest item that the last take() returned.
    """

    def __init__(self) -> None:
        self.made = 0.0
        self._items: list[Item] = []
        self._oldest = 0.0
        self._reader: asyncio.Future[None] | None = None  # set while it waits

    def put(self, item: Item, made: float = 0.0) -> None:
        if not self._items:
            self._oldest = made
            if self._reader is not None and not self._reader.done():
                self._reader.set_result(None)
        self._items.append(item)

    async def take(self) -> list[Item]:
        """Everything that arrived since the last call, at least one item."""
        if not self._items:
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        items, self._items = self._items, []
        self.made = self._oldest
        return items


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
