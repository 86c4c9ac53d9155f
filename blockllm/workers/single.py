"""One worker for callers without an event loop, started when first needed."""

from __future__ import annotations

import atexit
import threading

from blockllm.errors import WorkerDied
from blockllm.workers.call import Answer, Call, Limits, R, content_fault, question_of, result_of
from blockllm.workers.process import Worker, WorkerEnded


class SingleWorker:
    """Safe to use from any thread; calls wait for each other."""

    def __init__(self, module: str, limits: Limits | None = None) -> None:
        self._module, self._limits = module, limits or Limits()
        self._worker: Worker | None = None
        self._lock = threading.Lock()
        atexit.register(self.close)

    def call(self, call: Call[R]) -> R:
        """The result. Raises the task's own BlockllmError, ContentFault when the content exceeded a
        limit, WorkerDied when the process ended twice for another reason."""
        question = question_of(call)
        with self._lock:
            try:
                answer = self._ask(question, call.patience)
            except WorkerEnded:  # not by its content
                try:
                    answer = self._ask(question, call.patience)
                except WorkerEnded as error:
                    raise WorkerDied(str(error)) from error
        return result_of(answer, call)

    def _ask(self, question: bytes, patience: float) -> Answer:
        if self._worker is None:
            self._worker = self._start()
        try:
            answer = self._worker.ask(question, patience)
        except WorkerEnded as ended:
            self._worker = None
            if ended.fault is None:
                raise
            raise content_fault(ended.fault) from ended
        if answer.ends_worker:
            self._worker.end()
            self._worker = None
        return answer

    def start(self) -> None:
        """Start the process now, so that it is ready when it is asked. Raises WorkerDied."""
        with self._lock:
            if self._worker is None:
                self._worker = self._start()

    def hand_over(self) -> list[Worker]:
        """The process, if there is one, which the caller has to end from now on."""
        with self._lock:
            given, self._worker = self._worker, None
            return [given] if given is not None else []

    def _start(self) -> Worker:
        try:
            return Worker(self._module, self._limits)
        except OSError as error:
            raise WorkerDied(f"a worker cannot be started: {error.strerror}") from error

    def close(self) -> None:
        """End the process; a later call starts another."""
        with self._lock:
            if self._worker is not None:
                self._worker.end()
                self._worker = None
