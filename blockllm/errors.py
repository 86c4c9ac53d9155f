"""Every error a user can meet.

BlockllmError
├── ConfigError                 a setting has a wrong value
├── ZooError                    the offline store refused something; nothing was changed
│   ├── CheckpointError         a checkpoint's files are damaged, incomplete or lie
│   │   ├── UnsafeCheckpoint    the weights are pickled, or ask for code to be run
│   │   ├── UnsupportedModel    the architecture, or an option of it, is not known
│   │   └── AdapterMismatch     the adapter does not fit the base it is added to
│   ├── NameTaken               another model has this name
│   ├── UnknownModel            no model has this name
│   ├── CorruptStore            stored bytes are not what their id says
│   └── StoreFull               the disk is full
├── ContentFault                a template or tokenizer broke the limits of the process it runs in
├── RequestError                a client asked for something impossible (HTTP 4xx)
│   ├── BadRequest              a field has a wrong value (400)
│   ├── ContextTooLong          prompt and output exceed the model's context (400)
│   ├── ModelNotFound           no such model is served (404)
│   └── TooManyRequests         a tenant has its share of the line already (429)
└── EngineError                 serving failed, not the client's fault (HTTP 5xx)
    ├── OutOfMemory             weights or KV pages do not fit the memory budget
    ├── Overloaded              too many requests wait already (503)
    ├── AgentDied               the agent process ended while it held the request (503)
    └── WorkerDied              two processes ended while they read the request's text (503)
"""

from __future__ import annotations


class BlockllmError(Exception):
    """Root of every error raised on purpose."""


class ConfigError(BlockllmError):
    """A setting has a wrong value; the message names the setting and what was expected."""


class ZooError(BlockllmError):
    """The offline store refused an operation and changed nothing."""


class CheckpointError(ZooError):
    """A checkpoint's files are damaged, incomplete, or contradict each other."""


class UnsafeCheckpoint(CheckpointError):
    """Reading the checkpoint would run code (pickled weights, remote code)."""


class UnsupportedModel(CheckpointError):
    """The architecture, or one of its options, is not supported."""


class AdapterMismatch(CheckpointError):
    """The adapter's tensors do not fit the base model."""


class NameTaken(ZooError):
    """The zoo has a model of this name already."""


class UnknownModel(ZooError):
    """The zoo has no model of this name."""


class CorruptStore(ZooError):
    """Stored bytes differ from what their content address promises."""


class StoreFull(ZooError):
    """The file system of the zoo has no room left."""


class ContentFault(BlockllmError):
    """Foreign content broke the limits of the process that runs it. `part` says which content, the
    message what it did, and `kind` that in one word: failed, size, time, memory, crash or off."""

    def __init__(self, message: str, part: str = "", kind: str = "failed") -> None:
        super().__init__(message)
        self.part, self.kind = part, kind


class RequestError(BlockllmError):
    """The client's request cannot be served as asked."""

    status = 400
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class BadRequest(RequestError):
    """A field of the request has a wrong value; `param` names it."""


class ContextTooLong(RequestError):
    """Prompt plus requested output exceed the model's context length."""

    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    """No model of this name is served."""

    status = 404
    code = "model_not_found"


class TooManyRequests(RequestError):
    """As many requests of the tenant wait as its share of the line has places."""

    status = 429
    code = "rate_limit_exceeded"


class EngineError(BlockllmError):
    """Serving failed through no fault of the client."""

    status = 500


class OutOfMemory(EngineError):
    """Weights or KV pages do not fit the memory budget; the message says what would fit."""


class Overloaded(EngineError):
    """More requests wait than the limit allows; try again later."""

    status = 503


class AgentDied(EngineError):
    """The agent process that held the request ended; a new one is being started."""

    status = 503


class WorkerDied(EngineError):
    """Processes that read the request's text ended, and not by what they read."""

    status = 503


def error_of(kind: str, message: str, param: str | None = None) -> BlockllmError:
    """The error of a class of this module, by name, that another process speaks of; an unknown
    kind becomes an EngineError."""
    found = globals().get(kind)
    if not (isinstance(found, type) and issubclass(found, BlockllmError)):
        return EngineError(message)
    return found(message, param) if issubclass(found, RequestError) else found(message)
