"""What travels over a link. Tagged structs: a decoder rejects every other shape.

front end ── Submit, Cancel, AskStats, Shutdown ──→ agent
front end ←── Progress, Ready, Tokens, Refused, Stats, Failed ── agent
"""

from __future__ import annotations

import msgspec

from blockllm import errors
from blockllm.core import Request, TokenEvent
from blockllm.observability.stats import EngineStats


class Submit(msgspec.Struct, frozen=True, tag="submit"):
    """Generate this request; `sent` is the sender's monotonic clock, 0 when not measured."""

    request: Request
    sent: float = 0.0


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Forget this request; no event of it is wanted any more."""

    request: str


class AskStats(msgspec.Struct, frozen=True, tag="ask_stats"):
    """Report the books now."""


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End the agent; requests still in it are dropped."""


class Progress(msgspec.Struct, frozen=True, tag="progress"):
    """What an agent does before it is ready: units done of a total, 0 when that is not known."""

    activity: str
    done: int = 0
    total: int = 0

    def __str__(self) -> str:
        return f"{self.activity} ({self.done} of {self.total})" if self.total else self.activity


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Models are loaded, requests are welcome: which chains, by model, and why others are not."""

    stats: EngineStats
    fingerprints: dict[str, str] = {}
    left_out: dict[str, str] = {}


class Tokens(msgspec.Struct, frozen=True, tag="tokens"):
    """Everything one turn of the engine produced, and when (the agent's monotonic clock).

    `entries`: seconds the front end and the link took for each request that entered since the
    last such message.
    """

    events: list[TokenEvent]
    made: float = 0.0
    entries: list[float] = []


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """The engine did not take this request; `kind` names a class of blockllm.errors."""

    request: str
    kind: str
    message: str
    param: str | None = None


class Stats(msgspec.Struct, frozen=True, tag="stats"):
    """The engine's books."""

    stats: EngineStats


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """The agent is about to end: it could not load, or its engine broke."""

    kind: str
    message: str


ToAgent = Submit | Cancel | AskStats | Shutdown
FromAgent = Progress | Ready | Tokens | Refused | Stats | Failed


def refusal(request: str, error: errors.BlockllmError) -> Refused:
    """The message that carries `error` to the request's sender."""
    param = error.param if isinstance(error, errors.RequestError) else None
    return Refused(request, type(error).__name__, str(error), param)
