"""Bodies whose length two programs could read differently are refused, with what follows."""

from __future__ import annotations

import asyncio

import pytest

from tools.campaigns.answers import check_answer, read_answers
from tools.campaigns.loop import VirtualLoop
from tools.campaigns.script import plain_request
from tools.campaigns.stand import Stand

HEAD = (
    b"POST /tokenize HTTP/1.1\r\nhost: a\r\nauthorization: Bearer k1\r\n"
    b"content-type: application/json\r\n"
)
CHUNKED = b"transfer-encoding: chunked\r\n"
FRAMINGS = {
    "a length and chunks": b"content-length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunks and a length": CHUNKED + b"content-length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"content-length: 0\r\ncontent-length: 5\r\n\r\n",
    "equal lengths": b"content-length: 5\r\ncontent-length: 5\r\n\r\nabcde",
    "a list of lengths": b"content-length: 5, 5\r\n\r\nabcde",
    "a signed length": b"content-length: +5\r\n\r\nabcde",
    "a length in hex": b"content-length: 0x5\r\n\r\nabcde",
    "a negative length": b"content-length: -1\r\n\r\n",
    "a space before a colon": b"content-length : 5\r\n\r\nabcde",
    "another coding": b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
    "no coding": b"transfer-encoding: identity\r\n\r\n",
    "chunks inside": b"transfer-encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "chunks twice": CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "a control character": b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"x: a\r\n transfer-encoding: chunked\r\n\r\n",
    "a line feed alone": b"x: a\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a carriage return alone": b"x: a\rtransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "line feeds at the end": b"content-length: 0\n\n",
    "a null": b"x: \0\r\n\r\n",
    "a chunk's extension with a line feed": CHUNKED + b"\r\n5;a\nabcde\r\n0\r\n\r\n",
    "a chunk's length in C": CHUNKED + b"\r\n0x5\r\nabcde\r\n0\r\n\r\n",
    "a chunk's length of 65 bits": CHUNKED + b"\r\n10000000000000005\r\nabcde\r\n0\r\n\r\n",
    "chunks with line feeds": CHUNKED + b"\r\n5\nabcde\n0\n\n",
    "a chunk without an end": CHUNKED + b"\r\n5\r\nabcdeXX0\r\n\r\n",
}


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    return Stand(tmp_path_factory.mktemp("stand"))


@pytest.mark.parametrize("name", FRAMINGS)
def test_what_two_programs_could_read_differently_is_refused(stand: Stand, name: str) -> None:
    async def run() -> bytes:
        stand.seen.clear()
        wire, _ = stand.connect(asyncio.get_running_loop())
        wire.send(HEAD + FRAMINGS[name] + plain_request(b"/health"))
        while not wire.is_closing():
            await asyncio.sleep(1)
        await asyncio.sleep(0.1)
        return bytes(wire.written)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        (answer,), rest = read_answers(runner.run(run()))
    check_answer(answer)
    assert (answer.status, rest) == (400, b"")
    assert ("GET", b"/health") not in stand.seen
    stand.check_books()
