"""HTTP parsing with a limit that the parser itself does not have, and a clock."""

from __future__ import annotations

import time

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024  # request line and headers


class BoundedProtocol(HttpToolsProtocol):
    """Refuses a request whose head does not end: it would be collected without limit.

    Notes in the scope's state when a request's last byte came: `received`, monotonic clock.
    """

    _in_head = True
    _head_bytes = 0

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self.scope["state"]["received"] = time.monotonic()
        super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"Request head longer than {MAX_HEAD_BYTES} bytes.")
