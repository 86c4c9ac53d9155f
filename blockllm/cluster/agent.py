"""The loop of an agent: take what arrived, let the engine make one turn, hand its tokens over.

The same loop runs in the agent process of a server and on a thread inside `LLM`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from blockllm.cluster.link import Link
from blockllm.cluster.messages import (
    AskStats,
    Cancel,
    Failed,
    Ready,
    Shutdown,
    Stats,
    Submit,
    ToAgent,
    Tokens,
    refusal,
)
from blockllm.core import Request, TokenEvent
from blockllm.errors import BlockllmError, EngineError
from blockllm.observability.stats import EngineStats

STATS_SECONDS = 1.0  # between two reports while there is work

logger = logging.getLogger(__name__)


class EnginePort(Protocol):
    """What the loop needs of an engine; blockllm.engine.Engine is one."""

    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> None: ...
    def step(self) -> list[TokenEvent]: ...
    @property
    def has_work(self) -> bool: ...
    def stats(self) -> EngineStats: ...
    def check_books(self) -> None: ...


class Loaded(NamedTuple):
    """An engine, the fingerprints of the chains it serves, and why others are left out."""

    engine: EnginePort
    fingerprints: Mapping[str, str] = {}
    left_out: Mapping[str, str] = {}


def run_agent(load: Callable[[], Loaded], link: Link) -> bool:
    """Load an engine and serve the link until Shutdown; False when loading or serving failed.

    Every failure is told to the other end first, so that no request is lost silently.
    """
    try:
        loaded = load()
    except BlockllmError as error:
        link.send(Failed(type(error).__name__, str(error)))
        return False
    except Exception as error:
        logger.exception("the engine could not be loaded")
        link.send(Failed("EngineError", f"the engine could not be loaded: {error!r}"))
        return False
    try:
        Agent(loaded, link).run()
    except Exception:
        logger.exception("the engine broke; the agent ends")
        link.send(Failed("AgentDied", "the engine broke while it computed; it is being restarted"))
        return False
    return True


class Agent:
    """Owns one engine and one end of a link."""

    def __init__(self, loaded: Loaded, link: Link) -> None:
        self.engine = loaded.engine
        self._loaded = loaded
        self.link = link
        self._stopped = False
        self._checked = True  # books were checked since the last work
        self._reported = 0.0
        self._turn_ended = 0.0
        self._entries: list[float] = []  # seconds; told with the next tokens

    def run(self) -> None:
        """Serve until Shutdown arrives. Raises what the engine's turn or its books raise."""
        _, served, left_out = self._loaded
        self.link.send(Ready(self.engine.stats(), dict(served), dict(left_out)))
        while not self._stopped:
            for message in self.link.receive(wait=self._is_idle()):
                self._take(message)
            if self.engine.has_work:
                self._turn()
            elif not self._checked:
                self._settle()

    def _is_idle(self) -> bool:
        return self._checked and not self.engine.has_work

    def _take(self, message: ToAgent) -> None:
        match message:
            case Submit(request=request, sent=sent):
                self._checked = False
                self._note_entry(request, sent)
                self._submit(request)
            case Cancel(request=request_id):
                self._checked = False
                self.engine.cancel(request_id)
            case AskStats():
                self._report()
            case Shutdown():
                self._stopped = True

    def _note_entry(self, request: Request, sent: float) -> None:
        """Book how long the request was on its way; waiting for a turn to end is the engine's."""
        if request.arrival and sent:
            engine_seconds = max(self._turn_ended - sent, 0.0)
            self._entries.append(time.monotonic() - request.arrival - engine_seconds)

    def _submit(self, request: Request) -> None:
        try:
            self.engine.submit(request)
        except BlockllmError as error:
            self.link.send(refusal(request.id, error))
        except Exception:  # one bad request fails alone
            logger.exception("the engine failed to take a request")
            self.link.send(refusal(request.id, EngineError("the engine could not take it")))

    def _turn(self) -> None:
        events = self.engine.step()
        self._turn_ended = time.monotonic()
        if events:
            self.link.send(Tokens(events, self._turn_ended, self._entries))
            self._entries = []
        if self._turn_ended - self._reported > STATS_SECONDS:
            self._report()

    def _settle(self) -> None:
        """Work has just run out: books must balance now."""
        self._checked = True
        self.engine.check_books()
        self._report()

    def _report(self) -> None:
        self._reported = time.monotonic()
        self.link.send(Stats(self.engine.stats()))
