"""Tasks of tests: some keep to the limits, others break one each."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import msgspec

from blockllm.errors import BadRequest
from blockllm.workers.call import Call, Handler, Handlers, Run

MODULE = "tests.workers.tasks"


class TaskInput(msgspec.Struct):
    """What to do with a number, and for how long at most; a text makes the question long."""

    number: int = 0
    seconds: float = 0.2
    text: str = ""


def call(
    task: str,
    number: int = 0,
    content: str = "",
    *,
    text: str = "",
    patience: float = 20.0,
    tenant: str = "",
) -> Call[int]:
    contents = {"content": content} if content else {}
    given = TaskInput(number, text=text)
    return Call(task, given, int, contents, "prompt", patience, tenant)


def handlers() -> Handlers:
    functions = (double, burn, grow, abort, die, sleep, refuse, fail, panic, pid, flood, escape)
    return {function.__name__: Handler(TaskInput, function) for function in functions}


class Panic(BaseException):
    """As the tokenizers library's."""


def double(given: TaskInput, run: Run) -> int:
    return 2 * given.number


def burn(given: TaskInput, run: Run) -> int:
    run.at("content", given.seconds)
    while True:
        pass


def grow(given: TaskInput, run: Run) -> int:
    run.at("content")
    return len(bytearray(1 << 40))


def abort(given: TaskInput, run: Run) -> int:
    run.at("content")
    os.abort()


def die(given: TaskInput, run: Run) -> int:
    """As by an operator, or by a machine without memory: the first so many times."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def sleep(given: TaskInput, run: Run) -> int:
    run.at("content")
    time.sleep(given.number)
    return given.number


def refuse(given: TaskInput, run: Run) -> int:
    raise BadRequest("prompt: not this one", "prompt")


def fail(given: TaskInput, run: Run) -> int:
    run.at("content")
    raise KeyError("no such token")


def panic(given: TaskInput, run: Run) -> int:
    run.at("content")
    raise Panic("index out of bounds")


def pid(given: TaskInput, run: Run) -> int:
    return os.getpid()


def flood(given: TaskInput, run: Run) -> object:
    run.at("content")
    return "a" * given.number


def escape(given: TaskInput, run: Run) -> int:
    """Of what a worker gives up: how many things it can still do."""
    ways = (lambda: os.write(os.memfd_create("x"), b"a" * 10), _fork, _open_many)
    return sum(map(_succeeds, ways))


def _fork() -> None:
    child = os.fork()
    if not child:  # it must not answer beside its parent
        os._exit(0)
    os.waitpid(child, 0)


def _open_many() -> None:
    for _ in range(100):
        os.open("/dev/null", os.O_RDONLY)


def _succeeds(way: object) -> bool:
    try:
        return way() is not ctypes  # type: ignore[operator]
    except (OSError, MemoryError):
        return False
