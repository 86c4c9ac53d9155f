"""The plain twin of a pool: the same tasks in this process, with no limits of memory and time."""

from __future__ import annotations

import asyncio
import importlib
from typing import Any

import msgspec

from blockllm.workers.call import Call, R


class _Unwatched:
    def at(self, part: str, seconds: float | None = None) -> None:
        """Nothing is limited here."""


class InProcess:
    """Runs tasks of a module on the caller's thread: for tests, and for tools on trusted files."""

    def __init__(self, module: str) -> None:
        self._handlers = importlib.import_module(module).handlers()

    def call(self, call: Call[R]) -> R:
        """The result. Raises what the task raises."""
        handler = self._handlers[call.task]
        result: Any = handler.function(call.arguments, _Unwatched())
        return msgspec.convert(result, call.result)

    async def run(self, call: Call[R]) -> R:
        """As above, on a thread of its own."""
        return await asyncio.to_thread(self.call, call)

    def close(self) -> None:
        """There is nothing to end."""
