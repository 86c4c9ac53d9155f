"""Entry of a worker: `python -m blockllm.workers.main SOCKET NOTE MODULE LIMITS`.

The module has `handlers()`, the tasks by name. One frame asks, one answers; the end of the stream
says that the parent is gone. A task that computes too long ends the process: its timer counts
time on the processor, so a busy machine takes nothing from it.
"""

from __future__ import annotations

import gc
import importlib
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from blockllm.errors import BlockllmError
from blockllm.workers.call import (
    HARMLESS,
    MAX_MESSAGE,
    NOTE_BYTES,
    Answer,
    Fault,
    Handlers,
    Limits,
    Question,
    refusal_of,
)
from blockllm.workers.frames import frame, receive
from blockllm.workers.parent import wake_at_end_of_parent

MAX_DESCRIPTORS = 64  # sockets, standard streams, and the files of one model


class Watched:
    """The timer of a task, and the note of what it runs, which the parent reads after a death."""

    def __init__(self, note: mmap.mmap) -> None:
        self._note = note
        self.part = ""

    def at(self, part: str, seconds: float | None = None) -> None:
        """From now on `part` is at fault, and may compute for so many seconds."""
        if part != self.part:
            self.part = part
            name = part.encode()[: NOTE_BYTES - 1]
            self._note[: len(name) + 1] = name + b"\0"
        if seconds is not None:
            signal.setitimer(signal.ITIMER_PROF, seconds)


def restrict(limits: Limits) -> None:
    """Give up what no task needs: files to write, processes to start, memory without end."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    for kind, most in (
        (resource.RLIMIT_AS, pages * resource.getpagesize() + limits.memory),
        (resource.RLIMIT_NOFILE, MAX_DESCRIPTORS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        highest = resource.getrlimit(kind)[1]
        if highest != resource.RLIM_INFINITY:
            most = min(most, highest)
        resource.setrlimit(kind, (most, most))


def answer(data: bytes, handlers: Handlers, run: Watched, most: int) -> Answer:
    """Do one task; every error becomes an answer."""
    try:
        question = msgspec.json.decode(data, type=Question)
        handler = handlers[question.task]
        arguments = msgspec.json.decode(question.arguments, type=handler.arguments)
        result = msgspec.json.encode(handler.function(arguments, run))
    except BlockllmError as error:
        return Answer(refusal=refusal_of(error))
    except MemoryError:
        return Answer(fault=Fault("memory", run.part))
    except Exception as error:  # of a library that was given foreign content
        text = f"{type(error).__name__}: {error}"
        return Answer(fault=Fault("failed", run.part, text[:MAX_MESSAGE]))
    except BaseException as error:  # a panic of the tokenizers library, whose state is doubtful
        return Answer(fault=Fault("crash", run.part, str(error)[:MAX_MESSAGE]))
    if len(result) > most:
        return Answer(fault=Fault("size", run.part))
    return Answer(msgspec.Raw(result))


def serve(channel: socket.socket, handlers: Handlers, run: Watched, limits: Limits) -> None:
    """Answer until the parent is gone, or the process is not to be trusted any more."""
    while (data := receive(channel)) is not None:
        run.at("", limits.seconds)
        given = answer(data, handlers, run, limits.answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        channel.sendall(frame(msgspec.json.encode(given)))
        if given.fault is not None and given.fault.kind not in HARMLESS:
            return


def main(arguments: Sequence[str]) -> None:
    """Run one worker to its end."""
    # Ctrl-C reaches the whole process group, and SIGTERM of a service manager the whole service
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    wake_at_end_of_parent()
    channel, note = socket.socket(fileno=int(arguments[0])), int(arguments[1])
    limits = msgspec.json.decode(arguments[3], type=Limits)
    run = Watched(mmap.mmap(note, NOTE_BYTES))
    handlers = importlib.import_module(arguments[2]).handlers()
    os.dup2(0, 2)  # libraries write what content made them do; errors travel in answers
    gc.collect()
    gc.freeze()
    restrict(limits)
    serve(channel, handlers, run, limits)


if __name__ == "__main__":
    main(sys.argv[1:])
    os._exit(0)
