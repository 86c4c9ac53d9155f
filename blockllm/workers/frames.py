"""Frames on a stream socket: four bytes of length, then so many bytes."""

from __future__ import annotations

import asyncio
import socket
import struct

MAX_BYTES = 128 << 20  # of one frame: the largest body of a request, spelled as JSON
_HEAD = struct.Struct("<I")
_CHUNK = 1 << 18


def frame(data: bytes) -> bytes:
    """The frame of at most MAX_BYTES bytes."""
    return _HEAD.pack(len(data)) + data


class Assembly:
    """Collects one frame from what a socket gives; nothing may follow it."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, chunk: bytes) -> bool:
        """True when the frame is complete. Raises ValueError for one that is too long."""
        self._bytes += chunk
        return len(self._bytes) >= _HEAD.size and len(self._bytes) >= _HEAD.size + self._length()

    def _length(self) -> int:
        length: int = _HEAD.unpack_from(self._bytes)[0]
        if length > MAX_BYTES:
            raise ValueError(f"a frame of {length} bytes, allowed {MAX_BYTES}")
        return length

    def content(self) -> bytes:
        """The frame's bytes."""
        return bytes(memoryview(self._bytes)[_HEAD.size :])


def receive(channel: socket.socket) -> bytes | None:
    """The next frame; None when the other side is gone."""
    assembly = Assembly()
    while chunk := channel.recv(_CHUNK):
        if assembly.add(chunk):
            return assembly.content()
    return None


async def receive_async(channel: socket.socket) -> bytes | None:
    """As above, on the running event loop; the socket does not block."""
    loop = asyncio.get_running_loop()
    assembly = Assembly()
    while chunk := await loop.sock_recv(channel, _CHUNK):
        if assembly.add(chunk):
            return assembly.content()
    return None
