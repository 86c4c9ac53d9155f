"""One running server: socket → models → agent → HTTP, and an orderly end.

listening → agent loading → serving → draining (no new requests) → stopped
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence

import uvicorn

from blockllm.api.app import make_app
from blockllm.api.keys import read_keys
from blockllm.api.models import Models, Shelf, load_models
from blockllm.api.protocol import BoundedProtocol
from blockllm.api.serving import Serving
from blockllm.cluster.agent_main import AgentOptions
from blockllm.cluster.supervisor import AGENT_COMMAND, Supervisor
from blockllm.config import ServerSettings
from blockllm.errors import ConfigError, Overloaded
from blockllm.observability.metrics import ServerMetrics
from blockllm.observability.stats import EngineStats

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAST_BYTES_SECONDS = 1.0  # for answers of cancelled requests to reach their clients

logger = logging.getLogger(__name__)


class _HttpServer(uvicorn.Server):
    """Leaves signals to us: the first one drains, it does not close connections."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Server:
    """Everything `blockllm serve` runs. `announce` is called once, when requests are taken."""

    def __init__(
        self,
        settings: ServerSettings,
        shelf: Shelf,
        options: AgentOptions,
        announce: Callable[[str, Models, EngineStats], None],
        agent_command: Sequence[str] = AGENT_COMMAND,
    ) -> None:
        """Raises ConfigError, UnknownModel and CheckpointError; the port is taken from here on."""
        self._settings = settings
        self._announce = announce
        self._keys = read_keys(settings.api_keys, settings.api_key_file)
        self._socket = _listen(settings.host, settings.port)
        self._models = load_models(shelf, options.models, options.engine.max_context)
        metrics = ServerMetrics(self._models.names, self._read_books)
        self._supervisor = Supervisor(options, agent_command, metrics.request_overhead.observe)
        self._serving = Serving(settings, self._models, self._supervisor, metrics)
        self._asked_to_stop = asyncio.Event()

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def run(self) -> None:
        """Serve until a signal asks to stop. Raises the agent's own error when it cannot start."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        try:
            if not await self._start_agent():
                return
            await self._serve()
        finally:
            await self._supervisor.stop()
            self._socket.close()

    def _on_signal(self) -> None:
        if self._asked_to_stop.is_set():  # the second one: at once; the agent follows its parent
            os._exit(1)
        self._asked_to_stop.set()

    async def _start_agent(self) -> bool:
        """False when asked to stop meanwhile."""
        starting = asyncio.ensure_future(self._supervisor.start())
        stopping = asyncio.ensure_future(self._asked_to_stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return False
        starting.result()
        self._models.limit(self._supervisor.stats.max_context)
        return True

    async def _serve(self) -> None:
        http = _HttpServer(
            uvicorn.Config(
                make_app(self._serving, self._keys),
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=self._settings.log_level,
                access_log=self._settings.log_level == "debug",
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )
        serving = asyncio.ensure_future(http.serve(sockets=[self._socket]))
        self._announce(self.address, self._models, self._supervisor.stats)
        await self._asked_to_stop.wait()
        await self._drain()
        http.should_exit = True
        await serving

    async def _drain(self) -> None:
        """Refuse new requests; let those in flight finish until the timeout, then end them."""
        self._serving.draining = True
        count, patience = self._serving.num_in_flight, self._settings.drain_timeout
        logger.info("draining: %d requests in flight, at most %g s", count, patience)
        await self._wait_for_requests(patience)
        self._supervisor.streams.fail_all(Overloaded("the server is shutting down"))
        await self._wait_for_requests(LAST_BYTES_SECONDS)

    async def _wait_for_requests(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._serving.num_in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def _read_books(self) -> tuple[EngineStats, bool, int]:
        supervisor = self._supervisor
        return supervisor.stats, supervisor.ready, supervisor.restarts


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded. Raises ConfigError when that is impossible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    listener.setblocking(False)
    return listener
