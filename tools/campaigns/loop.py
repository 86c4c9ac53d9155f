"""An event loop whose clock jumps to the next deadline, and a connection without a socket.

A request that waits for a minute is judged in microseconds, and the same input always gives the
same answer.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class _Jumping(selectors.SelectSelector):
    """Instead of waiting, moves the clock on."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time passes only when there is nothing to do; threads' work is done at once."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(  # type: ignore[override]
        self, executor: object, work: Callable[..., Any], *values: Any
    ) -> asyncio.Future[Any]:
        done = self.create_future()
        try:
            done.set_result(work(*values))
        except Exception as error:
            done.set_exception(error)
        return done


class Wire(asyncio.Transport):
    """The server's end of a connection: keeps what is written, and holds back what is sent while
    the server does not read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, protocol: asyncio.Protocol) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 80)})
        self.written = bytearray()
        self.closed_at: float | None = None
        self.closed = asyncio.Event()
        self._loop, self._protocol = loop, protocol
        self._held: list[bytes] = []
        self._is_paused = False

    def send(self, data: bytes) -> None:
        """Bytes of the client arrive."""
        if not data or self.closed_at is not None:
            return
        if self._is_paused or self._held:
            self._held.append(data)
        else:
            self._protocol.data_received(data)

    def end(self) -> None:
        """The client sends no more; as asyncio does, the connection is closed unless wanted."""
        if self.closed_at is None and not self._protocol.eof_received():
            self.close()

    def reset(self) -> None:
        """The client is gone."""
        self._close(ConnectionResetError())

    def write(self, data: Any) -> None:
        if self.closed_at is not None:  # uvloop's transports say so, asyncio's pass over it
            raise RuntimeError("the transport is closed")
        self.written += data

    def close(self) -> None:
        self._close(None)

    def abort(self) -> None:
        self._close(None)

    def is_closing(self) -> bool:
        return self.closed_at is not None

    def pause_reading(self) -> None:
        self._is_paused = True

    def resume_reading(self) -> None:
        self._is_paused = False
        self._loop.call_soon(self._release)

    def _release(self) -> None:
        while self._held and not self._is_paused and self.closed_at is None:
            self._protocol.data_received(self._held.pop(0))

    def _close(self, error: Exception | None) -> None:
        if self.closed_at is None:
            self.closed_at = self._loop.time()
            self.closed.set()
            self._loop.call_soon(self._protocol.connection_lost, error)
