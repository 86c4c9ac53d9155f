"""Connections: any bytes in any pieces to the protocol, the guard and the routes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

from tools.campaigns.answers import check_answer, read_answers, requests_of
from tools.campaigns.draws import Draws
from tools.campaigns.loop import VirtualLoop, Wire
from tools.campaigns.oracle import Target
from tools.campaigns.script import (
    HALF_CLOSED,
    NOT_READING,
    RESET,
    Script,
    plain_request,
    write_script,
)
from tools.campaigns.stand import KEEP_ALIVE, LIMITS, Stand

# after the last byte of a client; a request that ends late is answered before the next deadline
PATIENCE = LIMITS.head + LIMITS.body + LIMITS.reader + KEEP_ALIVE + 1
ORDINARY_EACH = 200  # connections between two ordinary requests


def connection(scratch: Path) -> Target:
    """A connection as a script says; every one is answered or closed within its deadlines, and an
    ordinary request afterwards is answered as ever."""
    stand, loop = Stand(scratch), VirtualLoop()
    asyncio.set_event_loop(loop)
    count = 0

    def run(data: bytes) -> None:
        nonlocal count
        script = write_script(Draws(data))
        loop.run_until_complete(_play(stand, loop, script))
        count += 1
        if count % ORDINARY_EACH == 0:
            loop.run_until_complete(_ask_ordinarily(stand, loop))

    seeds = [bytes([end, intact, 0, *range(i, i + 40)]) for end in (0, 1, 2, 3, 7)
             for intact in (0, 1) for i in range(0, 90, 10)]  # fmt: skip
    return Target(tuple(seeds), run, 256)


async def _play(stand: Stand, loop: VirtualLoop, script: Script) -> None:
    stand.seen.clear()
    wire, protocol = stand.connect(loop)
    for pause, piece in script.pieces:
        if pause:
            await asyncio.sleep(pause)
        wire.send(piece)
        await asyncio.sleep(0)
    if script.end == HALF_CLOSED:
        wire.end()
    elif script.end == RESET:
        wire.reset()
    elif script.end == NOT_READING and not wire.is_closing():
        protocol.pause_writing()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            await wire.closed.wait()
    await _settle()
    try:
        _judge(stand, wire, script)
    finally:
        wire.abort()
        await _settle()


async def _settle() -> None:
    """Let everything that is due now happen."""
    for _ in range(8):
        await asyncio.sleep(0)


def _judge(stand: Stand, wire: Wire, script: Script) -> None:
    assert wire.closed_at is not None, "the connection stays open"
    stand.check_books()
    answers, rest = read_answers(bytes(wire.written))
    for answer in answers:
        check_answer(answer)
    assert all(not answer.closes for answer in answers[:-1]), "an answer behind the last one"
    # a parser's refusal answers what never became a request
    assert len(answers) <= len(stand.seen) + 1, "more answers than requests"
    _compare(stand.seen, script.data)
    if script.is_intact:
        assert len(answers) == len(script.targets), f"{len(answers)} answers to {script.targets}"
        assert all(answer.status == 200 for answer in answers), answers
        assert [path for _, path in stand.seen] == list(script.targets)
        assert not rest, f"left over: {rest[:80]!r}"


def _compare(seen: list[tuple[str, bytes]], data: bytes) -> None:
    """What reached the application is what another parser finds in the same bytes."""
    expected = requests_of(data)
    if expected is not None:
        found = [(method, path.partition(b"?")[0]) for method, path in seen]
        theirs = [(method, _path_of(target)) for method, target in expected[: len(found)]]
        assert found == theirs, f"other requests: {found} instead of {theirs}"


def _path_of(target: bytes) -> bytes:
    path = target.partition(b"#")[0].partition(b"?")[0]
    scheme, found, rest = path.partition(b"://")
    return path if not found or b"/" in scheme else b"/" + rest.partition(b"/")[2]


async def _ask_ordinarily(stand: Stand, loop: VirtualLoop) -> None:
    body = {"model": "base", "prompt": [7, 8, 9], "max_tokens": 3, "return_token_ids": True}
    wire, _ = stand.connect(loop)
    wire.send(plain_request(b"/v1/completions", body))
    await wire.closed.wait()
    await _settle()
    (answer,), rest = read_answers(bytes(wire.written))
    assert answer.status == 200 and not rest
    assert json.loads(answer.body)["choices"][0]["token_ids"] == [7, 8, 9]
