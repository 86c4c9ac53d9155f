"""The pool: limits are kept, faults are their request's, workers are replaced, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from blockllm.errors import BadRequest, ContentFault, Overloaded, TooManyRequests, WorkerDied
from blockllm.workers.call import Limits
from blockllm.workers.call_queue import CallQueue, WaitingCall
from blockllm.workers.ledger import Ledger
from blockllm.workers.pool import Pool
from tests.workers.tasks import MODULE, call

LIMITS = Limits(memory=64 << 20, answer=1 << 16)


@contextlib.asynccontextmanager
async def pool_of(size: int, ledger: Ledger | None = None) -> AsyncIterator[Pool]:
    pool = Pool(MODULE, size, LIMITS, ledger)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def in_pool(size: int, work: Callable[[Pool], Awaitable[None]]) -> None:
    async def main() -> None:
        async with pool_of(size) as pool:
            await work(pool)

    asyncio.run(main())


FAULTS = {
    "burn": ("time", "took longer"),
    "grow": ("memory", "more memory"),
    "abort": ("crash", "ended the process"),
    "panic": ("crash", "index out of bounds"),
}


def test_every_fault_is_its_requests_and_a_new_worker_takes_the_place():
    async def work(pool: Pool) -> None:
        first = await pool.run(call("pid"))
        for task, (kind, words) in FAULTS.items():
            with pytest.raises(ContentFault, match=words) as caught:
                await pool.run(call(task, content=task))
            assert (caught.value.kind, caught.value.part) == (kind, "content")
            assert await pool.run(call("double", 4)) == 8
        assert first not in [await pool.run(call("pid")), *pool.pids]
        assert pool.replaced == len(FAULTS)

    in_pool(1, work)


def test_errors_that_break_no_limit_keep_the_worker():
    async def work(pool: Pool) -> None:
        first = await pool.run(call("pid"))
        with pytest.raises(BadRequest, match="not this one") as caught:
            await pool.run(call("refuse", content="c"))
        assert caught.value.param == "prompt"
        for task, number, words in (("fail", 0, "KeyError"), ("flood", 1 << 17, "larger result")):
            for _ in range(9):
                with pytest.raises(ContentFault, match=words):
                    await pool.run(call(task, number, content="c"))
        assert await pool.run(call("pid")) == first
        assert pool.ledger.off({"content": "c"}) == []

    in_pool(1, work)


def test_a_worker_that_does_not_answer_is_killed():
    async def work(pool: Pool) -> None:
        started = time.monotonic()
        with pytest.raises(ContentFault, match="took longer"):
            await pool.run(call("sleep", 60, "c", patience=1.5))
        assert time.monotonic() - started < 10
        assert await pool.run(call("double", 1)) == 2

    in_pool(1, work)


def test_a_worker_that_another_ends_costs_nothing():
    async def work(pool: Pool) -> None:
        await asyncio.gather(*(pool.run(call("double")) for _ in pool.pids))
        for pid in pool.pids:
            os.kill(pid, signal.SIGTERM)  # of a service manager: it is the server's to stop them
        asked = asyncio.ensure_future(pool.run(call("sleep", 1, "c")))
        await asyncio.sleep(0.3)
        (busy,) = (worker.pid for worker in pool._held)
        os.kill(busy, signal.SIGKILL)
        assert await asked == 1
        with pytest.raises(WorkerDied):  # twice in a row: then it is said, and may be the content's
            await pool.run(call("die", content="c"))
        assert pool.ledger.is_suspect({"content": "c"})

    in_pool(2, work)


def test_a_worker_that_ends_while_idle_is_replaced_at_once():
    async def work(pool: Pool) -> None:
        assert await pool.run(call("double", 4)) == 8
        for _ in range(2):
            killed = pool.pids[0]
            os.kill(killed, signal.SIGKILL)
            async with asyncio.timeout(10):
                while killed in pool.pids or len(pool.pids) < 2:
                    await asyncio.sleep(0.01)
            assert not Path(f"/proc/{killed}").exists(), "it is reaped"
        assert await pool.run(call("double", 4)) == 8

    in_pool(2, work)


PARENT = """
import asyncio, os, signal, sys
from blockllm.workers.pool import Pool
from tests.workers.tasks import MODULE, call
async def main():
    pool = Pool(MODULE, 1)
    await pool.start()
    await pool.run(call("double", 4))
    os.kill(pool.pids[0], signal.SIGSTOP)
    print(pool.pids[0], flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_a_stopped_worker_ends_with_its_parent():
    run = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True)
    assert run.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while Path(f"/proc/{int(run.stdout)}").exists():
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.02)


def test_others_are_answered_beside_content_that_takes_all_its_time():
    async def work(pool: Pool) -> None:
        pool.ledger.book("content", {"content": "bad"})
        burning = [asyncio.ensure_future(pool.run(call("burn", 0, "bad"))) for _ in range(4)]
        await asyncio.sleep(0)
        while not all(task.done() for task in burning):
            assert await pool.run(call("double", 3, "good")) == 6
            assert len(pool._held) <= 1
            await asyncio.sleep(0.01)
        for task in burning:
            with pytest.raises(ContentFault):
                await task

    in_pool(2, work)


LONG = "a" * 100_000


def test_long_texts_leave_a_worker_to_others():
    async def work(pool: Pool) -> None:
        sleeping = call("sleep", 1, text=LONG, tenant="a")
        long = [asyncio.ensure_future(pool.run(sleeping)) for _ in range(2)]
        await asyncio.sleep(0)
        while not all(task.done() for task in long):
            async with asyncio.timeout(0.9):
                assert await pool.run(call("double", 3, tenant="b")) == 6
            await asyncio.sleep(0.01)
            assert sum(waiting.is_long for waiting in pool._held.values()) <= 1

    in_pool(2, work)


def test_what_a_long_text_needs_is_not_the_contents_fault():
    async def work(pool: Pool) -> None:
        for _ in range(6):
            with pytest.raises(ContentFault, match="more memory"):
                await pool.run(call("grow", content="c", text=LONG))
        assert not pool.ledger.is_suspect({"content": "c"})
        with pytest.raises(ContentFault, match="more memory"):
            await pool.run(call("grow", content="c"))
        assert pool.ledger.is_suspect({"content": "c"})

    in_pool(1, work)


def test_tenants_are_served_in_turn_and_share_the_queue():
    async def main() -> None:
        queue = CallQueue(12)
        loop = asyncio.get_running_loop()

        def add(tenant: str, places: int = 1) -> WaitingCall:
            made = WaitingCall(loop.create_future(), {}, tenant, places)
            queue.add(made)
            return made

        def served() -> str:
            found = queue.next(lambda waiting: not waiting.is_long)
            return found.tenant if found else ""

        many = [add("a", 4), *(add("a") for _ in range(2))]
        with pytest.raises(TooManyRequests):
            add("a")
        for _ in range(2):
            add("b")
        with pytest.raises(Overloaded):
            add("c", 9)
        assert [served() for _ in range(5)] == ["a", "b", "a", "b", ""]
        queue.remove(many[0])
        add("", 40)  # a call that finds the queue empty may wait, whatever its size
        with pytest.raises(Overloaded):
            add("")

    asyncio.run(main())


def test_content_is_switched_off_after_some_faults_and_on_again_later():
    now = [0.0]
    ledger = Ledger(3, 100.0, lambda: now[0])
    bad, good = {"template": "b", "tokenizer": "t"}, {"template": "g", "tokenizer": "t"}
    for second in (0, 10, 20):
        ledger.check(bad)
        now[0] = second
        ledger.book("template", bad)
    with pytest.raises(ContentFault, match=r"switched off.*3 times within 100 s") as caught:
        ledger.check(bad)
    assert (caught.value.part, caught.value.kind) == ("template", "off")
    assert ledger.off(bad) == ["template"] and ledger.off(good) == []
    ledger.check(good)
    assert ledger.is_suspect(bad) and not ledger.is_suspect(good)
    now[0] = 101.0
    ledger.check(bad)
    now[0] = 200.0
    assert not ledger.is_suspect(bad)


def test_a_call_that_is_cancelled_frees_its_worker():
    async def work(pool: Pool) -> None:
        asked = asyncio.ensure_future(pool.run(call("sleep", 60)))
        waiting = asyncio.ensure_future(pool.run(call("double", 1)))
        await asyncio.sleep(0.05)
        asked.cancel()
        assert await waiting == 2

    in_pool(1, work)


def test_closing_ends_what_runs_and_what_waits():
    async def main() -> None:
        pool = Pool(MODULE, 1, LIMITS)
        await pool.start()
        running = asyncio.ensure_future(pool.run(call("sleep", 60)))
        waiting = asyncio.ensure_future(pool.run(call("double", 1)))
        await asyncio.sleep(0.05)
        started = time.monotonic()
        await pool.close()
        for task in (running, waiting):
            with pytest.raises((Overloaded, WorkerDied)):
                await task
        assert time.monotonic() - started < 4
        with pytest.raises(Overloaded):
            await pool.run(call("double", 1))

    asyncio.run(main())


def test_no_process_and_no_descriptor_is_left():
    def books() -> tuple[int, list[str]]:
        lists = Path("/proc/self/task").glob("*/children")
        children = [child for each in lists for child in each.read_text().split()]
        return len(os.listdir("/proc/self/fd")), sorted(children)

    async def work(pool: Pool) -> None:
        for _ in range(2):
            for task in ("abort", "grow"):
                with pytest.raises(ContentFault):
                    await pool.run(call(task))

    in_pool(1, work)  # what the first event loop leaves is not the pool's
    before = books()
    in_pool(2, work)
    assert books() == before


def test_a_worker_gives_up_what_no_task_needs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLOCKLLM_API_KEY", "k")

    async def work(pool: Pool) -> None:
        assert await pool.run(call("escape")) == (1 if os.geteuid() == 0 else 0)  # root may fork
        (pid,) = pool.pids
        assert "BLOCKLLM_API_KEY" not in Path(f"/proc/{pid}/environ").read_text()

    in_pool(1, work)
