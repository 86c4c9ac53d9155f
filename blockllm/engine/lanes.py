"""Lanes run batches. What a batch computes does not depend on its lane; when, and on which cores,
does.

`InlineLane` computes where it is asked to: one lane, the plain twin. A `ThreadLane` computes on a
thread and cores of its own, beside others: native kernels let go of the interpreter. Lanes change
no books: the scheduler plans and settles on one thread, and a sequence is in one lane at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import NamedTuple

import torch

from blockllm.engine.batch.arrays import HopPlan
from blockllm.engine.batch.hops import HopCursor, Paused
from blockllm.engine.batch.turn import Turn
from blockllm.engine.run.executor import Executor
from blockllm.engine.run.graphs import GraphExecutor
from blockllm.engine.run.pending import Logits
from blockllm.engine.run.rows import run_rows
from blockllm.observability.timeline import OFF, Timeline


class Done(NamedTuple):
    """A batch that a lane has computed, or on a device has launched."""

    turn: Turn
    logits: Logits
    paused: list[Paused]
    hops: list[HopPlan]
    seconds: float


class Runner:
    """Drives the rows of a turn through their stops."""

    def __init__(
        self, executor: Executor | GraphExecutor, cursor: HopCursor, timeline: Timeline = OFF
    ) -> None:
        """`cursor` is the runner's own."""
        self._executor, self._cursor, self._timeline = executor, cursor, timeline

    @torch.inference_mode()
    def run(self, turn: Turn, threads: int = 0) -> Done:
        """Compute; `threads`: 0: as many as the engine has."""
        logits, hops, start = Logits(), [], time.perf_counter()
        rows = run_rows(self._executor, self._cursor, turn.batch, self._timeline, threads)
        for hop, out in rows:
            hops.append(hop.plan)
            if hop.plan.has_head:
                logits.append((hop, out))
        return Done(turn, logits, self._cursor.paused, hops, time.perf_counter() - start)


class InlineLane:
    """Computes at once, on the caller's thread."""

    is_through = True  # with what was started

    def __init__(self, runner: Runner) -> None:
        self.threads = 0  # of the batch that it runs; 0: none
        self._runner = runner
        self._done: Done | None = None

    def start(self, turn: Turn, threads: int) -> None:
        """Compute a batch; the lane must be free."""
        self.threads, self._done = threads, self._runner.run(turn, threads)

    def finish(self) -> Done:
        """What was started, computed."""
        done, self._done, self.threads = self._done, None, 0
        assert done is not None
        return done


class ThreadLane:
    """Computes on a thread of its own."""

    def __init__(self, runner: Runner, name: str) -> None:
        self.threads = 0  # of the batch that it runs; 0: none
        self._runner = runner
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"lane-{name}")
        self.future: Future[Done] | None = None

    def start(self, turn: Turn, threads: int) -> None:
        """Begin to compute a batch; the lane must be free."""
        self.threads, self.future = threads, self._pool.submit(self._runner.run, turn, threads)

    @property
    def is_through(self) -> bool:
        """Whether what was started is computed."""
        return self.future is not None and self.future.done()

    def finish(self) -> Done:
        """Wait for what was started. Raises what computing raised."""
        future, self.future, self.threads = self.future, None, 0
        assert future is not None
        return future.result()


Lane = InlineLane | ThreadLane


def finish_some(lanes: Sequence[Lane]) -> list[Done]:
    """What lanes are through with; waits for the first of them. [] if none runs."""
    busy = [lane for lane in lanes if lane.threads]
    if busy and not any(lane.is_through for lane in busy):
        futures = [lane.future for lane in busy if isinstance(lane, ThreadLane) and lane.future]
        wait(futures, return_when=FIRST_COMPLETED)
    return [lane.finish() for lane in busy if lane.is_through]


def make_lanes(
    count: int, make_runner: Callable[[Timeline], Runner], timeline: Timeline
) -> list[Lane]:
    """One lane computes inline; several have threads, which the timeline does not show."""
    if count == 1:
        return [InlineLane(make_runner(timeline))]
    return [ThreadLane(make_runner(OFF), str(number)) for number in range(count)]
