"""What one client sends over one connection: requests, mostly damaged, in pieces, with pauses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple

from tools.campaigns.documents import EDITS, read_document, words_of
from tools.campaigns.draws import Draws, flipped
from tools.campaigns.targets.bodies import CHAT, COMPLETION, DETOKENIZE, TOKENIZE

KEY = b"k1"
NORMAL, HALF_CLOSED, RESET, NOT_READING = range(4)
MAX_PIECES = 400  # of one connection: what is longer is not sent byte by byte
_ROUTES = (
    (b"GET", b"/v1/models"), (b"POST", b"/v1/completions"), (b"POST", b"/v1/chat/completions"),
    (b"POST", b"/tokenize"), (b"POST", b"/detokenize"), (b"GET", b"/health"), (b"GET", b"/ready"),
    (b"GET", b"/v1/models/base"), (b"GET", b"/metrics"),
)  # fmt: skip
_BODIES = {
    b"/v1/completions": {**COMPLETION, "prompt": "hi", "max_tokens": 2},
    b"/v1/chat/completions": {**CHAT, "max_completion_tokens": 2},
    b"/tokenize": {**TOKENIZE, "model": "base"},
    b"/detokenize": DETOKENIZE,
}
_WORDS = words_of(_BODIES.values())
_METHODS = (
    b"GET", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT", b"get", b"",
    b"PRI", b"G\0T", b"POST POST", b"M-SEARCH", b"QUERY",
)  # fmt: skip
_TARGETS = (
    b"/", b"*", b"", b"//", b"/v1/models/%00", b"/v1/models/%ff", b"/v1/models/..%2f..", b"/%",
    b"http://a/health", b"http://[::1", b"a:80", b"/v1/models/\xc3\xa9", b"/health?\xff", b"/\0",
    b"/health#x", b"/v1/models/" + b"a" * 3000, b"/v1/models//", b"/v1/completions/", b"//health",
    b"/v1/models?limit=1", b"/\x7f", b"/v1/models/base%20", b"/v1/models/\r\nx", b"/%2e%2e/x",
)  # fmt: skip
_VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/1.2",
    b"http/1.1",
    b"",
    b"X",
)
_HEADERS = (
    b"transfer-encoding: chunked", b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: identity",
    b"Transfer-Encoding : chunked", b"transfer-encoding:\tchunked", b"transfer-encoding: xchunked",
    b"transfer-encoding: chunked, chunked", b"content-length: 0", b"content-length: -1",
    b"content-length: +5", b"content-length: 5, 5", b"content-length: 99999999999999999999",
    b"content-length: 0x5", b"content-length:", b"content-length: 5 ", b"Content-Length : 5",
    b"expect: 100-continue", b"expect: x", b"connection: close", b"connection: keep-alive, upgrade",
    b"upgrade: websocket", b"upgrade: h2c", b"connection: upgrade", b"http2-settings: x",
    b"content-type: text/plain", b"content-type: APPLICATION/JSON; charset=utf-8", b"content-type:",
    b"content-encoding: gzip", b"origin: http://evil.example", b"authorization: Bearer k2",
    b"authorization: Bearer", b"authorization: Basic azE=", b"authorization: \xff", b"host:",
    b"host: a\r\nhost: b", b" folded: a", b"x: a\r\n b", b": empty", b"no colon", b"x\0y: 1",
    b"x: \0", b"x: " + b"a" * 2000, b"cookie: a=b", b"x-request-id: \x1b[31m", b"range: bytes=0-1",
    b"access-control-request-method: POST", b"te: trailers", b"trailer: x", b"accept: text/html",
    b"content-length: 5\r\ncontent-length: 6", b"max-forwards: 0", b"x-forwarded-for: 127.0.0.1",
)  # fmt: skip
_ENDS = (b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r", b"\n\r", b"")
_CHUNK_LINES = (b";ext=1", b";" + b"x" * 300, b" ", b"\t", b"\r", b"g", b"_", b";\n")
PAUSES = (0.0, 0.0, 0.0, 0.05, 1.0, 12.0, 25.0, 70.0)  # seconds


class Script(NamedTuple):
    """Pieces with the seconds before each, and how the client ends. `is_intact`: every request is
    whole and valid, and has to be answered so; `targets` are their paths."""

    pieces: tuple[tuple[float, bytes], ...]
    end: int
    is_intact: bool
    targets: tuple[bytes, ...] = ()

    @property
    def data(self) -> bytes:
        """Everything that is sent."""
        return b"".join(piece for _, piece in self.pieces)


def write_script(draws: Draws) -> Script:
    """The script that an input stands for."""
    end = draws.below(8)
    is_intact = draws.below(4) == 0
    targets, requests = [], b""
    for _ in range(1 + draws.below(3)):
        target, request = _request(draws, is_intact)
        targets.append(target)
        requests += request
    if not is_intact and draws.below(3) == 0:
        requests = flipped(requests, draws)
    pieces = tuple(_cut(requests, draws, pauses=not is_intact))
    return Script(pieces, end if end < 4 and not is_intact else NORMAL, is_intact, tuple(targets))


def plain_request(path: bytes, body: object = None, close: bool = True) -> bytes:
    """An ordinary request as clients send it; a GET without a body."""
    lines = [b"%b %b HTTP/1.1" % (b"GET" if body is None else b"POST", path), b"host: a"]
    lines += [b"authorization: Bearer " + KEY, *([b"connection: close"] if close else [])]
    data = b""
    if body is not None:
        data = json.dumps(body).encode()
        lines += [b"content-type: application/json", b"content-length: %d" % len(data)]
    return b"\r\n".join([*lines, b"", data])


def _request(draws: Draws, is_intact: bool) -> tuple[bytes, bytes]:
    def maybe(usual: bytes, others: Callable[[], bytes], chance: int = 8) -> bytes:
        return usual if is_intact or draws.below(chance) else others()

    method, target = draws.pick(_ROUTES)
    body = b""
    if target in _BODIES:
        body = json.dumps(_BODIES[target]).encode()
        if not is_intact and draws.below(2):
            edits = bytes([EDITS, 0]) + draws.take(12)
            body = read_document(edits, [_BODIES[target]], _WORDS)
    lines = [
        b" ".join([
            maybe(method, lambda: draws.pick(_METHODS)),
            maybe(target, lambda: draws.pick(_TARGETS)),
            maybe(b"HTTP/1.1", lambda: draws.pick(_VERSIONS)),
        ]),
        b"host: a",
        maybe(b"authorization: Bearer " + KEY, lambda: draws.pick(_HEADERS)),
        b"content-type: application/json",
    ]  # fmt: skip
    framed = body
    if draws.below(3) == 0 and body:
        lines.append(b"transfer-encoding: chunked")
        framed = _chunked(body, draws, is_intact)
    elif body:
        size = maybe(b"%d" % len(body), lambda: b"%d" % (len(body) + draws.below(9) - 4))
        lines.append(b"content-length: " + size)
    for _ in range(0 if is_intact else draws.below(4)):
        lines.insert(draws.below(len(lines)) + 1, draws.pick(_HEADERS))
    head = b"".join(line + maybe(b"\r\n", lambda: draws.pick(_ENDS), 12) for line in lines)
    return target, head + maybe(b"\r\n", lambda: draws.pick(_ENDS), 12) + framed


def _chunked(body: bytes, draws: Draws, is_intact: bool) -> bytes:
    out, size = b"", 1 + draws.below(200)
    for start in range(0, len(body), size):
        chunk = body[start : start + size]
        line = b"%x" % len(chunk)
        if not is_intact and draws.below(12) == 0:
            line += draws.pick(_CHUNK_LINES)
        out += line + b"\r\n" + chunk + b"\r\n"
    trailers = b"".join(
        draws.pick((b"x: 1\r\n", b"content-length: 3\r\n", b"x" * 99 + b": 2\r\n", b"\0\r\n"))
        for _ in range(0 if is_intact else draws.below(4))
    )
    return out + b"0\r\n" + trailers + b"\r\n"


def _cut(data: bytes, draws: Draws, pauses: bool) -> list[tuple[float, bytes]]:
    kind = draws.below(4)
    if kind == 0:
        return [(0.0, data)]
    if kind == 1 and len(data) <= MAX_PIECES:
        return [(0.0, data[at : at + 1]) for at in range(len(data))]
    places = sorted(draws.below(len(data) + 1) for _ in range(1 + draws.below(5)))
    parts = [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True)]
    return [(draws.pick(PAUSES) if pauses and i else 0.0, part) for i, part in enumerate(parts)]
