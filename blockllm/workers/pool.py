"""A few workers, shared by all requests of one event loop.

A worker that breaks a limit is killed and another takes its place; the fault is its request's and
is booked. Content with faults holds one worker at a time, so it cannot keep all from other content.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from blockllm.errors import ContentFault, Overloaded, WorkerDied
from blockllm.workers.call import (
    Answer,
    Call,
    Fault,
    Limits,
    R,
    content_fault,
    question_of,
    result_of,
)
from blockllm.workers.ledger import Ledger
from blockllm.workers.process import Worker, WorkerEnded

MAX_WAITING = 2048  # calls
CLOSING_SECONDS = 0.005  # between looks
RETRY_SECONDS = 1.0  # before a worker is started again that could not start

logger = logging.getLogger(__name__)


class _Waiting(NamedTuple):
    """A call that waits for a worker."""

    found: asyncio.Future[Worker]
    contents: Mapping[str, str]


class Pool:
    """Lives on one event loop, from start() to close()."""

    def __init__(
        self, module: str, size: int, limits: Limits | None = None, ledger: Ledger | None = None
    ) -> None:
        self.ledger = ledger or Ledger()
        self.replaced = 0
        self._module, self._size, self._limits = module, size, limits or Limits()
        self._idle: list[Worker] = []
        self._held: dict[Worker, Mapping[str, str]] = {}
        self._waiting: deque[_Waiting] = deque()
        self._replacing: set[asyncio.Task[None]] = set()
        self._closing = asyncio.Event()

    async def start(self, *started: Worker) -> None:
        """Start the workers; `started` ones are taken over. Raises WorkerDied."""
        for worker in started:
            self._give_back(worker)
        try:
            for _ in range(self._size - len(started)):
                self._give_back(await asyncio.to_thread(Worker, self._module, self._limits))
        except OSError as error:
            await self.close()
            raise WorkerDied(f"a worker cannot be started: {error.strerror}") from error

    @property
    def pids(self) -> list[int]:
        """The worker processes there are."""
        return [worker.pid for worker in (*self._idle, *self._held)]

    async def run(self, call: Call[R]) -> R:
        """The result. Raises the task's own BlockllmError, ContentFault when the content exceeded a
        limit or is switched off, Overloaded when too many calls wait, and WorkerDied when two
        workers ended for another reason."""
        self.ledger.check(call.contents)
        question = question_of(call)
        try:
            answer = await self._ask(question, call)
        except WorkerEnded:  # the machine's or an operator's doing: once more
            try:
                answer = await self._ask(question, call)
            except WorkerEnded as ended:  # then it may be the content's after all
                self.ledger.book("", call.contents)
                raise WorkerDied(f"two workers ended, the last one so: {ended}") from ended
        if answer.fault is not None and answer.ends_worker:
            raise self._booked(answer.fault, call)
        return result_of(answer, call)

    async def _ask(self, question: bytes, call: Call[R]) -> Answer:
        worker = await self._take(call.contents)
        try:
            answer = await worker.ask_async(question, call.patience)
        except WorkerEnded as ended:
            self._replace(worker)
            if ended.fault is None:
                raise
            raise self._booked(ended.fault, call) from ended
        except BaseException:  # cancelled: an answer may be under way
            self._replace(worker)
            raise
        if answer.ends_worker:
            self._replace(worker)
        else:
            self._give_back(worker)
        return answer

    def _booked(self, fault: Fault, call: Call[R]) -> ContentFault:
        self.ledger.book(fault.part, call.contents)
        return content_fault(fault)

    async def _take(self, contents: Mapping[str, str]) -> Worker:
        if self._closing.is_set():
            raise Overloaded("the server is shutting down")
        if self._idle and self._may_hold(contents):
            return self._hold(contents)
        if len(self._waiting) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} texts wait to be read already")
        waiting = _Waiting(asyncio.get_running_loop().create_future(), contents)
        self._waiting.append(waiting)
        try:
            return await waiting.found
        except asyncio.CancelledError:
            if waiting.found.done() and not waiting.found.cancelled():
                self._give_back(waiting.found.result())
            raise

    def _may_hold(self, contents: Mapping[str, str]) -> bool:
        """Whether a call with this content may take an idle worker now."""
        if not self.ledger.is_suspect(contents):
            return True
        digests = set(contents.values())
        return all(digests.isdisjoint(held.values()) for held in self._held.values())

    def _give_back(self, worker: Worker) -> None:
        self._held.pop(worker, None)
        self._idle.append(worker)
        worker.watch(self._has_ended)
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        for waiting in list(self._waiting) if self._idle else ():
            if waiting.found.done():
                self._waiting.remove(waiting)
            elif self._idle and self._may_hold(waiting.contents):
                self._waiting.remove(waiting)
                waiting.found.set_result(self._hold(waiting.contents))

    def _hold(self, contents: Mapping[str, str]) -> Worker:
        worker = self._idle.pop()  # the one that worked last: what it reads is in its caches
        worker.unwatch()
        self._held[worker] = contents
        return worker

    def _has_ended(self, worker: Worker) -> None:
        """An idle worker was killed: by an operator, or for want of memory."""
        worker.unwatch()
        self._idle.remove(worker)
        self._replace(worker)

    def _replace(self, worker: Worker) -> None:
        """Another process takes its place."""
        replacing = asyncio.get_running_loop().create_task(self._start_another(worker))
        self._replacing.add(replacing)
        replacing.add_done_callback(self._replacing.discard)

    async def _start_another(self, worker: Worker) -> None:
        worker.kill()
        await asyncio.to_thread(worker.end)
        self._held.pop(worker, None)
        self.replaced += 1
        if not worker.num_answers:  # perhaps it cannot start
            await self._pause()
        while not self._closing.is_set():
            try:
                another = await asyncio.to_thread(Worker, self._module, self._limits)
            except OSError as error:
                logger.error("a worker cannot be started: %s", error)
                await self._pause()
            else:
                return self._give_back(another)

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._closing.wait(), RETRY_SECONDS)

    async def close(self) -> None:
        """End all workers, whatever they do; calls that wait fail with Overloaded."""
        self._closing.set()
        for waiting in self._waiting:
            if not waiting.found.done():
                waiting.found.set_exception(Overloaded("the server is shutting down"))
        self._waiting.clear()
        for worker in self._idle:
            worker.unwatch()
        for worker in (*self._held, *self._idle):
            worker.kill()
        while self._held or self._replacing:  # each call takes leave of its worker
            await asyncio.sleep(CLOSING_SECONDS)
        await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in self._idle))
        self._idle.clear()
