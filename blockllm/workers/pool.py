"""A few workers, shared by all requests of one event loop.

A worker that breaks a limit is killed and another takes its place; the fault is its request's and
is booked. Content with faults holds one worker at a time, and long texts leave one free, so neither
can keep all from other texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

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
from blockllm.workers.call_queue import LONG_PLACES, CallQueue, WaitingCall, places_of
from blockllm.workers.ledger import Ledger
from blockllm.workers.process import Worker, WorkerEnded

MAX_WAITING = 2048  # places of the queue: calls, or so many times 32 KiB
CLOSING_SECONDS = 0.005  # between looks
RETRY_SECONDS = 1.0  # before a worker is started again that could not start

logger = logging.getLogger(__name__)


class Pool:
    """Lives on one event loop, from start() to close()."""

    def __init__(
        self, module: str, size: int, limits: Limits | None = None, ledger: Ledger | None = None
    ) -> None:
        self.ledger = ledger or Ledger()
        self.replaced = 0
        self._module, self._size, self._limits = module, size, limits or Limits()
        self._idle: list[Worker] = []
        self._held: dict[Worker, WaitingCall] = {}
        self._queue = CallQueue(MAX_WAITING)
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
        limit or is switched off, Overloaded when too many calls wait, TooManyRequests when too many
        of its tenant do, and WorkerDied when two workers ended for another reason."""
        self.ledger.check(call.contents)
        question = question_of(call)
        try:
            answer = await self._ask(question, call)
        except WorkerEnded:  # the machine's or an operator's doing: once more
            try:
                answer = await self._ask(question, call)
            except WorkerEnded as ended:  # then it may be the content's after all
                self._book("", question, call)
                raise WorkerDied(f"two workers ended, the last one so: {ended}") from ended
        if answer.fault is not None and answer.ends_worker:
            raise self._booked(answer.fault, question, call)
        return result_of(answer, call)

    async def _ask(self, question: bytes, call: Call[R]) -> Answer:
        worker = await self._take(question, call)
        try:
            answer = await worker.ask_async(question, call.patience)
        except WorkerEnded as ended:
            self._replace(worker)
            if ended.fault is None:
                raise
            raise self._booked(ended.fault, question, call) from ended
        except BaseException:  # cancelled: an answer may be under way
            self._replace(worker)
            raise
        if answer.ends_worker:
            self._replace(worker)
        else:
            self._give_back(worker)
        return answer

    def _booked(self, fault: Fault, question: bytes, call: Call[R]) -> ContentFault:
        self._book(fault.part, question, call)
        return content_fault(fault)

    def _book(self, part: str, question: bytes, call: Call[R]) -> None:
        """What a long text needs says nothing of the content: or a client could have content that
        others use switched off."""
        if places_of(question) <= LONG_PLACES:
            self.ledger.book(part, call.contents)

    async def _take(self, question: bytes, call: Call[R]) -> Worker:
        if self._closing.is_set():
            raise Overloaded("the server is shutting down")
        found: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        waiting = WaitingCall(found, call.contents, call.tenant, places_of(question))
        if self._idle and self._may_hold(waiting):
            return self._hold(waiting)
        self._queue.add(waiting)
        try:
            return await found
        except asyncio.CancelledError:
            if found.cancelled():
                self._queue.remove(waiting)
            else:
                self._give_back(found.result())
            raise

    def _may_hold(self, waiting: WaitingCall) -> bool:
        """Whether a call may take an idle worker now."""
        long = sum(held.is_long for held in self._held.values())
        if waiting.is_long and long >= max(1, self._size - 1):
            return False
        if not self.ledger.is_suspect(waiting.contents):
            return True
        digests = set(waiting.contents.values())
        return all(digests.isdisjoint(held.contents.values()) for held in self._held.values())

    def _give_back(self, worker: Worker) -> None:
        self._held.pop(worker, None)
        self._idle.append(worker)
        worker.watch(self._has_ended)
        self._serve_waiting()

    def _serve_waiting(self) -> None:
        while self._idle and (waiting := self._queue.next(self._may_hold)):
            waiting.found.set_result(self._hold(waiting))

    def _hold(self, waiting: WaitingCall) -> Worker:
        worker = self._idle.pop()  # the one that worked last: what it reads is in its caches
        worker.unwatch()
        self._held[worker] = waiting
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
        self._queue.clear(Overloaded("the server is shutting down"))
        for worker in self._idle:
            worker.unwatch()
        for worker in (*self._held, *self._idle):
            worker.kill()
        while self._held or self._replacing:  # each call takes leave of its worker
            await asyncio.sleep(CLOSING_SECONDS)
        await asyncio.gather(*(asyncio.to_thread(worker.end) for worker in self._idle))
        self._idle.clear()
