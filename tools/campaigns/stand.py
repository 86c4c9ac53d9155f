"""The whole application over an agent that answers at once: what an HTTP request meets, without
processes and sockets."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from blockllm.api.app import make_app
from blockllm.api.keys import KeyRing
from blockllm.api.models import load_models
from blockllm.api.protocol import BoundedProtocol, Limits, bounded_protocol
from blockllm.api.serving import Serving
from blockllm.cluster.messages import Progress
from blockllm.cluster.streams import Sink
from blockllm.config import ServerSettings
from blockllm.core import Finish, Request, TokenEvent, TokenLogprobs
from blockllm.observability.metrics import ServerMetrics
from blockllm.observability.stats import EngineStats
from tools.campaigns.loop import Wire
from tools.campaigns.script import KEY

LIMITS = Limits(head=20.0, body=60.0, reader=30.0, connections=64)
KEEP_ALIVE = 75


class EchoAgent:
    """Answers with the prompt's tokens, at the next moment; counts what is open."""

    alive = ready = True
    progress = Progress("ready")

    def __init__(self) -> None:
        self.open: set[str] = set()

    def submit(self, request: Request, sink: Sink) -> None:
        """Generate; the tokens come when the caller has had time to wait for them."""
        self.open.add(request.id)
        asyncio.get_running_loop().call_soon(self._answer, request, sink)

    def cancel(self, request_id: str) -> None:
        """Forget a request."""
        self.open.discard(request_id)

    def _answer(self, request: Request, sink: Sink) -> None:
        count = min(request.sampling.max_tokens, 3)
        for number in range(count):
            if request.id not in self.open:
                return
            token = request.prompt[number % len(request.prompt)]
            top = tuple((token + k, -0.5 - k) for k in range(request.sampling.logprobs or 0))
            is_last = number == count - 1
            finish = Finish.LENGTH if is_last else None
            logprobs = None if request.sampling.logprobs is None else TokenLogprobs(-0.5, top)
            if is_last:
                self.open.discard(request.id)
            sink(TokenEvent(request.id, token, logprobs, finish))


class _Errors(logging.Handler):
    """Keeps what is logged as an error of ours."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the end, where a traceback says what happened."""
        self.texts.append(self.format(record)[-400:])


class Stand:
    """The application and the state of a server, for many connections one after the other.

    `seen` are the requests that reached the application: method, raw path, body.
    """

    def __init__(self, folder: Path) -> None:
        from tests.api.family import FakeZoo

        self.logged = _Errors()
        for name in ("uvicorn.error", "blockllm"):
            logger = logging.getLogger(name)
            logger.handlers, logger.propagate = [self.logged], False
        models = load_models(FakeZoo(folder / "front-zoo", max_context=200), None)
        self.agent = EchoAgent()
        metrics = ServerMetrics(lambda: (EngineStats(), True, 0))
        settings = ServerSettings(max_body_bytes=20_000)
        self.serving = Serving(settings, models, self.agent, metrics)
        self._app = make_app(self.serving, KeyRing([f"tenant:{KEY.decode()}"]))
        self.seen: list[tuple[str, bytes]] = []
        self._config = uvicorn.Config(
            self._watch,
            http=bounded_protocol(LIMITS),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE,
        )
        self._config.load()
        self.state = ServerState()

    def connect(self, loop: asyncio.AbstractEventLoop) -> tuple[Wire, BoundedProtocol]:
        """A new connection."""
        made = self._config.http_protocol_class(  # type: ignore[call-arg, operator]
            config=self._config, server_state=self.state, app_state={}, _loop=loop
        )
        assert isinstance(made, BoundedProtocol)
        wire = Wire(loop, made)
        made.connection_made(wire)
        return wire, made

    def check_books(self) -> None:
        """Raise AssertionError unless nothing is open any more."""
        assert not self.state.connections, f"{len(self.state.connections)} connections are left"
        assert not self.state.tasks, f"{len(self.state.tasks)} tasks are left"
        assert not self.serving.num_in_flight, f"{self.serving.num_in_flight} are in flight"
        assert not self.agent.open, f"{len(self.agent.open)} requests are open"
        logged, self.logged.texts = self.logged.texts, []
        assert not logged, f"logged as an error: {logged[0]}"

    async def _watch(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append((scope["method"], scope["raw_path"]))
        await self._app(scope, receive, send)
