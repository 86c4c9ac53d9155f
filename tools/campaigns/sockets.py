"""Scripts of damaged connections on the sockets of a real server."""

from __future__ import annotations

import asyncio
import contextlib
import random
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

from tools.campaigns.answers import check_answer, read_answers
from tools.campaigns.draws import Draws
from tools.campaigns.oracle import MAX_GROWTH
from tools.campaigns.script import HALF_CLOSED, NOT_READING, RESET, Script, write_script
from tools.campaigns.server import SECONDS, Served, serving

AT_ONCE = 100
PACE = 0.02  # real seconds of a second in a script: every pause is then within the deadlines
PATIENCE = 12 * SECONDS  # several deadlines after each other, on a busy machine
ORDINARY_EACH = 500
MAX_PROBLEMS = 50


class SocketResults:
    """What came back, and what was wrong with it."""

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self.statuses: Counter[int] = Counter()
        self.problems: list[str] = []
        self.slowest = 0.0

    def complain(self, what: str, data: bytes) -> None:
        """Keep a problem."""
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(f"{what}; input {data.hex()}")


def run_sockets(count: int, seed: int) -> dict[str, Any]:
    """Play scripts on a real server; the report."""
    with tempfile.TemporaryDirectory() as made, serving(Path(made)) as served:
        start, expected = time.monotonic(), served.ordinary()
        results, memory = asyncio.run(_play_all(served, count, seed, expected))
        metrics = _rest(served)
        seconds, errors = time.monotonic() - start, served.errors()
    for is_wrong, what in (
        (metrics.restarts > 0, f"the agent was restarted {metrics.restarts:.0f} times"),
        (not metrics.is_idle, f"not at rest at the end: {metrics}"),
        (bool(errors), f"logged {len(errors)} errors: {errors[:3]}"),
        (memory[-1] - memory[0] > MAX_GROWTH, f"memory grew from {memory[0]} to {memory[-1]}"),
    ):
        results.problems += [what] if is_wrong else []
    return {
        "inputs": results.connections,
        "requests": results.requests,
        "seed": seed,
        "seconds": round(seconds, 1),
        "statuses": {str(status): n for status, n in sorted(results.statuses.items())},
        "slowest_seconds": round(results.slowest, 2),
        "memory_mib": [round(size / 2**20, 1) for size in memory],
        "faults": [{"count": 1, "what": what, "where": ""} for what in results.problems],
    }


def _rest(served: Served) -> Any:
    deadline = time.monotonic() + 20
    while not (metrics := served.metrics()).is_idle and time.monotonic() < deadline:
        time.sleep(1.5)
    return metrics


async def _play_all(
    served: Served, count: int, seed: int, expected: list[int]
) -> tuple[SocketResults, list[int]]:
    results, chance, memory = SocketResults(), random.Random(seed), [0]
    issued: Iterator[bytes] = (chance.randbytes(chance.randrange(4, 96)) for _ in range(count))

    async def work() -> None:
        for data in issued:
            await _play(served.port, data, results)
            if results.connections % ORDINARY_EACH == 0:
                tokens = await asyncio.to_thread(served.ordinary)
                if tokens != expected:
                    results.complain(f"an ordinary answer is {tokens}, not {expected}", b"")
                memory.append(served.memory())
                memory[0] = memory[0] or (memory[-1] if results.connections * 5 > count else 0)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    memory.append(served.memory())
    memory[0] = memory[0] or memory[-1]
    return results, memory


async def _play(port: int, data: bytes, results: SocketResults) -> None:
    script = write_script(Draws(data))
    start = time.monotonic()
    received = b""
    try:
        async with asyncio.timeout(PATIENCE):
            received = await _exchange(port, script)
    except TimeoutError:
        results.complain(f"neither answered nor closed within {PATIENCE} s", data)
    results.connections += 1
    results.requests += len(script.targets)
    results.slowest = max(results.slowest, time.monotonic() - start)
    try:
        _judge(script, received, results)
    except (AssertionError, ValueError) as error:
        results.complain(f"{type(error).__name__}: {error}", data)


async def _exchange(port: int, script: Script) -> bytes:
    """All that the server sends until it closes, or until the script's client goes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    received = bytearray()
    reading = asyncio.ensure_future(_read(reader, received))
    try:
        with contextlib.suppress(OSError):  # the server closed first
            for pause, piece in script.pieces:
                await asyncio.sleep(pause * PACE)
                writer.write(piece)
                await writer.drain()
            if script.end == HALF_CLOSED:
                writer.write_eof()
        if script.end == RESET:
            linger = struct.pack("ii", 1, 0)  # close means reset
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, linger)
            return bytes(received)
        if script.end == NOT_READING:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(2 * SECONDS)
            with contextlib.suppress(RuntimeError):
                writer.transport.resume_reading()  # type: ignore[attr-defined]
        await reading
        return bytes(received)
    finally:
        reading.cancel()
        writer.transport.abort()


async def _read(reader: asyncio.StreamReader, received: bytearray) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            received += data


def _judge(script: Script, received: bytes, results: SocketResults) -> None:
    answers, rest = read_answers(received)
    results.statuses.update(answer.status for answer in answers)
    for answer in answers:
        check_answer(answer)
    if script.is_intact:
        assert len(answers) == len(script.targets), f"{len(answers)} answers to {script.targets}"
        assert all(answer.status == 200 for answer in answers), answers
        assert not rest, f"left over: {rest[:80]!r}"
