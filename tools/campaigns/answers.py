"""Answers as a strict client reads them off a connection, and what has to be true of each."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

import h11

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n\0]*\Z")
_FIELDS = {"message", "type", "param", "code"}
MAX_HEAD = 1 << 20  # bytes; ours is lower, and refuses
BARE = frozenset({200, 204, 499})  # statuses whose body need not be an error object


class Answer(NamedTuple):
    """One answer; `closes`: the server says that it closes the connection."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes
    closes: bool


def read_answers(data: bytes) -> tuple[list[Answer], bytes]:
    """All whole answers in the bytes, and what is left over. Raises ValueError for bytes that are
    no HTTP."""
    answers = []
    while data:
        head, found, rest = data.partition(b"\r\n\r\n")
        if not found:
            break
        status, headers = _read_head(head)
        if status == 100:
            data = rest
            continue
        body = _read_body(headers, rest)
        if body is None:
            break
        answers.append(Answer(status, headers, body[0], headers.get(b"connection") == b"close"))
        data = body[1]
    return answers, data


def _read_head(head: bytes) -> tuple[int, dict[bytes, bytes]]:
    first, *lines = head.split(b"\r\n")
    status = _STATUS.match(first)
    if not status:
        raise ValueError(f"no status line: {first[:80]!r}")
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not name or name in headers or b"\n" in line or b"\0" in line:
            raise ValueError(f"no header, or twice: {line[:80]!r}")
        headers[name] = value.strip()
    return int(status[1]), headers


def _read_body(headers: dict[bytes, bytes], data: bytes) -> tuple[bytes, bytes] | None:
    """Body and the bytes behind it; None while it is not all there."""
    if b"content-length" in headers:
        size = int(headers[b"content-length"])
        return (data[:size], data[size:]) if len(data) >= size else None
    if headers.get(b"transfer-encoding") != b"chunked":
        return b"", data
    body = b""
    while True:
        line, found, rest = data.partition(b"\r\n")
        if not found:
            return None
        size = int(line, 16)
        if len(rest) < size + 2:
            return None
        if rest[size : size + 2] != b"\r\n":
            raise ValueError("a chunk does not end")
        body, data = body + rest[:size], rest[size + 2 :]
        if not size:
            return body, data


def check_answer(answer: Answer) -> None:
    """Raise AssertionError for an answer that must not be: 5xx without cause, an error that is not
    OpenAI's object."""
    assert answer.status < 500, f"status {answer.status}: {answer.body[:200]!r}"
    if answer.status in BARE:
        return
    assert answer.headers.get(b"content-type") == b"application/json", answer
    error = json.loads(answer.body)
    assert set(error) == {"error"} and set(error["error"]) == _FIELDS, answer.body[:200]
    assert isinstance(error["error"]["message"], str) and error["error"]["message"]


def requests_of(data: bytes) -> list[tuple[str, bytes]] | None:
    """Method and target of each request as another parser sees them, also of one that has not
    ended; None for bytes that it refuses. Two programs that see other requests in the same bytes
    can be played against each other."""
    found = []
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        parser.receive_data(data)
        while True:
            event = parser.next_event()
            if isinstance(event, h11.Request):
                if event.method == b"CONNECT":  # what follows is no HTTP to it; we refuse and go on
                    return None
                found.append((event.method.decode(), event.target))
            elif isinstance(event, h11.EndOfMessage):
                if parser.their_state is h11.MUST_CLOSE:
                    return found
                parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                parser.send(h11.EndOfMessage())
                parser.start_next_cycle()
            elif not isinstance(event, h11.Data):  # it wants more, waits for us, or is done
                return found
    except h11.RemoteProtocolError:
        return None
    except h11.LocalProtocolError:  # the client asked to close
        return found
