"""The parent's side of one worker process."""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from blockllm.workers.call import NOTE_BYTES, Answer, Fault, FaultKind, Limits, read_answer
from blockllm.workers.frames import frame, receive, receive_async

_END_SECONDS = 5.0  # a killed process is gone long before
# one thread, which computes the same whatever else the machine does
_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1"}
_OURS = "BLOCKLLM_"  # settings, keys among them
# how content ends a process; SIGKILL is another's doing
_ENDINGS: dict[int, FaultKind] = {
    -signal.SIGPROF: "time",
    **dict.fromkeys((-signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGILL), "crash"),
}


class WorkerEnded(Exception):
    """The process has ended; `fault` is what its content did, None if that is not known."""

    def __init__(self, fault: Fault | None, status: int) -> None:
        super().__init__(f"the worker ended with status {status}")
        self.fault = fault


class Worker:
    """One process that answers one question at a time, from several threads never."""

    def __init__(self, module: str, limits: Limits) -> None:
        """Starts the process. Raises OSError when the machine cannot."""
        with contextlib.ExitStack() as stack:
            self._channel, theirs = socket.socketpair()
            stack.callback(theirs.close)
            note = os.memfd_create("worker")
            stack.callback(os.close, note)
            os.ftruncate(note, NOTE_BYTES)
            self._note = mmap.mmap(note, NOTE_BYTES)
            given = [str(theirs.fileno()), str(note), module, msgspec.json.encode(limits).decode()]
            environment = {k: v for k, v in os.environ.items() if not k.startswith(_OURS)}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "blockllm.workers.main", *given],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), note),
                    env=environment | _ENVIRONMENT,
                )
            except BaseException:
                self._release()
                raise
        self.num_answers = 0
        self._ended: WorkerEnded | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def watch(self, ended: Callable[[Worker], None]) -> None:
        """On the running event loop, tell when it ends before it is asked again."""
        asyncio.get_running_loop().add_reader(self._channel, ended, self)

    def unwatch(self) -> None:
        """It is asked now, or ended."""
        asyncio.get_running_loop().remove_reader(self._channel)

    def ask(self, question: bytes, patience: float) -> Answer:
        """The answer. Raises WorkerEnded."""
        self._channel.settimeout(patience)
        is_late = False
        try:
            self._channel.sendall(frame(question))
            return self._read(receive(self._channel))
        except TimeoutError:
            is_late = True
        except (OSError, ValueError, EOFError):
            pass
        raise self.end(is_late)

    async def ask_async(self, question: bytes, patience: float) -> Answer:
        """As above, on the running event loop. When the caller is cancelled, end the worker."""
        self._channel.setblocking(False)
        is_late = False
        try:
            async with asyncio.timeout(patience):
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(self._channel, frame(question))
                return self._read(await receive_async(self._channel))
        except TimeoutError:
            is_late = True
        except (OSError, ValueError, EOFError):
            pass
        raise await asyncio.to_thread(self.end, is_late)

    def _read(self, data: bytes | None) -> Answer:
        if data is None:
            raise EOFError
        self.num_answers += 1
        return read_answer(data)

    def end(self, is_late: bool = False) -> WorkerEnded:
        """End the process, if it still runs; why it has ended. `is_late`: for want of an answer."""
        if self._ended is None:
            if is_late:
                self._process.kill()
            self._channel.close()  # a sound worker ends by that
            status = self._wait()
            part = self._note[:].partition(b"\0")[0].decode(errors="replace")
            self._note.close()
            kind = "time" if is_late else _ENDINGS.get(status)
            self._ended = WorkerEnded(Fault(kind, part) if kind else None, status)
        return self._ended

    def _wait(self) -> int:
        try:
            return self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        """Take the process's life, whatever it does; what asks it gets WorkerEnded."""
        self._process.kill()

    def _release(self) -> None:
        self._channel.close()
        self._note.close()
