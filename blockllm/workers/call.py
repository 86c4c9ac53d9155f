"""What a worker is asked and what it answers: JSON in frames of limited size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import msgspec

from blockllm.errors import (
    BadRequest,
    BlockllmError,
    ContentFault,
    RequestError,
    WorkerDied,
    error_of,
)
from blockllm.workers.frames import MAX_BYTES

R = TypeVar("R")

MAX_MESSAGE = 1000  # characters of an error
NOTE_BYTES = 64  # by which a worker says what it runs
EMPTY = msgspec.Raw(b"null")
FaultKind = Literal["failed", "size", "time", "memory", "crash"]
# kind of a fault → what the content did; the first ones say that the process can go on
WORDS: dict[FaultKind, str] = {
    "failed": "failed",
    "size": "made a larger result than is allowed",
    "time": "took longer than is allowed",
    "memory": "needed more memory than is allowed",
    "crash": "ended the process that ran it, by a fault of a library or for lack of memory",
}
HARMLESS = ("failed", "size")


class Limits(msgspec.Struct, frozen=True):
    """What one worker may use. `memory` is bytes of address space beside what it has after its
    start; `answer` bytes of one answer; `seconds` of computing, unless the task sets its own."""

    memory: int = 1 << 30
    answer: int = 64 << 20
    seconds: float = 10.0


@dataclass(frozen=True)
class Call(Generic[R]):
    """One task for a worker. `contents` names what may be at fault: part → digest; `field` is the
    request's that the arguments are from, `tenant` who asks. The answer has to come within
    `patience` seconds of the clock."""

    task: str
    arguments: msgspec.Struct
    result: type[R]
    contents: Mapping[str, str] = field(default_factory=dict)
    field: str | None = None
    patience: float = 60.0
    tenant: str = ""


class Run(Protocol):
    """What a task tells its worker."""

    def at(self, part: str, seconds: float | None = None) -> None:
        """From now on `part` is at fault, and may compute for so many seconds."""


class Handler(NamedTuple):
    """A task that a worker knows: the type of its arguments and what does it."""

    arguments: type[msgspec.Struct]
    function: Callable[[Any, Run], object]


Handlers = Mapping[str, Handler]


class Runner(Protocol):
    """Where calls are made: a Pool, or InProcess."""

    async def run(self, call: Call[R]) -> R:
        """The result. Raises the task's own BlockllmError, ContentFault when the content exceeded a
        limit or is switched off, Overloaded and WorkerDied."""


class Question(msgspec.Struct):
    """What is sent to a worker."""

    task: str
    arguments: msgspec.Raw


class Refusal(msgspec.Struct):
    """An error that the task raised on purpose; `kind` names a class of blockllm.errors."""

    kind: str
    message: str
    param: str | None = None


class Fault(msgspec.Struct):
    """What the content did wrong, a word of WORDS; `detail` is the library's message."""

    kind: FaultKind
    part: str
    detail: str = ""


class Answer(msgspec.Struct):
    """A result, or why there is none."""

    result: msgspec.Raw = EMPTY
    refusal: Refusal | None = None
    fault: Fault | None = None

    @property
    def ends_worker(self) -> bool:
        """Whether the process that gave it ends now."""
        return self.fault is not None and self.fault.kind not in HARMLESS


def question_of(call: Call[Any]) -> bytes:
    """The bytes that ask for it. Raises BadRequest when they are too many or not Unicode."""
    try:
        arguments = msgspec.Raw(msgspec.json.encode(call.arguments))
    except UnicodeEncodeError as error:
        field = call.field or call.task
        raise BadRequest(f"{field}: a lone surrogate is not Unicode", call.field) from error
    question = msgspec.json.encode(Question(call.task, arguments))
    if len(question) > MAX_BYTES:
        field = call.field or call.task
        raise BadRequest(f"{field}: longer than {MAX_BYTES >> 20} MiB", call.field)
    return question


def refusal_of(error: BlockllmError) -> Refusal:
    """The message that carries an error to the process that asked."""
    param = error.param if isinstance(error, RequestError) else None
    return Refusal(type(error).__name__, str(error)[:MAX_MESSAGE], param)


def read_answer(data: bytes) -> Answer:
    """What a worker sent. Raises ValueError for what no sound one sends."""
    try:
        return msgspec.json.decode(data, type=Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not an answer: {error}") from error


def result_of(answer: Answer, call: Call[R]) -> R:
    """The answer's result; raises what it carries instead, and WorkerDied for another result than
    was asked for."""
    if answer.refusal is not None:
        raise error_of(answer.refusal.kind, answer.refusal.message, answer.refusal.param)
    if answer.fault is not None:
        raise content_fault(answer.fault)
    try:
        return msgspec.json.decode(answer.result, type=call.result)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkerDied(f"{call.task}: the worker's result is damaged: {error}") from error


def content_fault(fault: Fault) -> ContentFault:
    """The error for a fault."""
    detail = f": {fault.detail}" if fault.detail else ""
    return ContentFault(f"{WORDS[fault.kind]}{detail}", fault.part, fault.kind)
