"""An agent of this process, for callers on an event loop."""

from __future__ import annotations

import asyncio
import contextlib

from blockllm.cluster.local import LocalAgent
from blockllm.cluster.streams import Item, Sink
from blockllm.core import Request


class EventLoopAgent:
    """The agent as seen from an event loop: sinks are called on the loop's thread."""

    def __init__(self, agent: LocalAgent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()

    def submit(self, request: Request, sink: Sink) -> None:
        def deliver(item: Item, made: float = 0.0) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed meanwhile
                self._loop.call_soon_threadsafe(sink, item, made)

        self._agent.submit(request, deliver)

    def cancel(self, request_id: str) -> None:
        self._agent.cancel(request_id)
