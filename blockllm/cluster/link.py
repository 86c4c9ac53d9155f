"""The port between the agent loop and its front end, and the adapter for one process."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Protocol

from blockllm.cluster.messages import FromAgent, ToAgent


class Link(Protocol):
    """The agent's end of a link."""

    def send(self, message: FromAgent) -> None:
        """Hand one message over; messages arrive in the order sent."""

    def receive(self, wait: bool) -> list[ToAgent]:
        """Everything that has arrived; with `wait`, blocks until something has."""


class InprocLink:
    """A link between threads: messages are passed as they are, never encoded."""

    def __init__(self, deliver: Callable[[FromAgent], None]) -> None:
        """`deliver` is called on the agent's thread, once per message."""
        self._inbox: queue.SimpleQueue[ToAgent] = queue.SimpleQueue()
        self._deliver = deliver

    def post(self, message: ToAgent) -> None:
        """Front end's side: send one message to the agent, from any thread."""
        self._inbox.put(message)

    def send(self, message: FromAgent) -> None:
        self._deliver(message)

    def receive(self, wait: bool) -> list[ToAgent]:
        messages = [self._inbox.get()] if wait else []
        while not self._inbox.empty():  # this thread is the only reader
            messages.append(self._inbox.get())
        return messages
