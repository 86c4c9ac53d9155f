"""One running server: socket → models → agent → HTTP, and an orderly end.

listening (503 with the progress) → agent loading → serving → draining (no new requests) → stopped
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from blockllm.api.app import make_app
from blockllm.api.exchangeable import ExchangeableApp, Starting
from blockllm.api.guard import Guard
from blockllm.api.keys import check_tenants, read_keys
from blockllm.api.models import Models, ZooReader, load_models
from blockllm.api.origins import admit_pages
from blockllm.api.protocol import Limits, bounded_protocol
from blockllm.api.serving import Serving
from blockllm.api.text_calls import TASKS
from blockllm.api.texts import Texts
from blockllm.cluster.agent_main import AgentOptions
from blockllm.cluster.messages import Progress
from blockllm.cluster.supervisor import AGENT_COMMAND, Supervisor
from blockllm.config import ServerSettings
from blockllm.errors import ConfigError, Overloaded
from blockllm.observability.metrics import ServerMetrics
from blockllm.observability.stats import EngineStats
from blockllm.workers.ledger import Ledger
from blockllm.workers.pool import Pool
from blockllm.workers.single import SingleWorker

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_OPEN = (
    "every machine that reaches %s can use this server: it has no API keys. Set --api-key-file or"
    " BLOCKLLM_API_KEY, or listen on 127.0.0.1"
)
SECOND_SIGNAL_SECONDS = 1.0  # before that it is one signal that came twice: to us and our group
SPARE_DESCRIPTORS = 128  # for models, logs and the agent
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
        open_zoo: Callable[[], contextlib.AbstractContextManager[ZooReader]],
        names: Sequence[str] | None,
        options: AgentOptions,
        announce: Callable[[str, Models, EngineStats], None],
        agent_command: Sequence[str] = AGENT_COMMAND,
    ) -> None:
        """Serves the models `names` of a zoo, or all. Raises ConfigError; the port is taken
        from here on."""
        self._settings = settings
        self._open_zoo, self._names, self._options = open_zoo, names, options
        self._announce = announce
        self._agent_command = agent_command
        self._keys = read_keys(settings.api_key, settings.api_key_file)
        check_tenants(options.engine.tenants, self._keys)
        self._socket = _listen(settings.host, settings.port)
        if not self._keys and not _is_loopback(self._socket):
            logger.warning(_OPEN, settings.host)
        self._metrics = ServerMetrics(self._read_books)
        self._serving: Serving | None = None
        self._supervisor: Supervisor | None = None
        self._ledger = Ledger()
        self._reader = SingleWorker(TASKS)  # until the pool takes its process over
        self._pool = Pool(TASKS, settings.text_workers, ledger=self._ledger)
        self._asked_to_stop = asyncio.Event()
        self._signalled = 0.0  # the clock of the first signal

    @property
    def address(self) -> str:
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def run(self) -> None:
        """Serve until a signal asks to stop. Raises UnknownModel, CheckpointError and the agent's
        own error when it cannot start; the socket answers meanwhile."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        exchangeable = ExchangeableApp(
            Guard(Starting(self._progress), self._keys, (), self._metrics.refused)
        )
        origins = self._settings.allowed_origins
        http = self._make_http(admit_pages(exchangeable, origins, self._metrics.refused))
        answering = asyncio.ensure_future(http.serve(sockets=[self._socket]))
        try:
            if await self._unless_stopped(self._load(exchangeable)):
                assert self._supervisor is not None
                await self._unless_stopped(self._supervisor.ended())
                await self._drain()
        finally:
            http.should_exit = True
            await answering
            if self._supervisor is not None:
                await self._supervisor.stop()
            await self._pool.close()
            self._reader.close()
            self._socket.close()

    def _on_signal(self) -> None:
        if not self._asked_to_stop.is_set():
            self._signalled = time.monotonic()
            self._asked_to_stop.set()
        elif time.monotonic() - self._signalled > SECOND_SIGNAL_SECONDS:
            os._exit(1)  # the agent follows its parent

    def _progress(self) -> Progress:
        return self._supervisor.progress if self._supervisor else Progress("reading models")

    async def _unless_stopped(self, work: Coroutine[None, None, None]) -> bool:
        """False when asked to stop meanwhile; the work is given up then."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._asked_to_stop.wait())
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait({working})
            return False
        working.result()
        return True

    async def _load(self, exchangeable: ExchangeableApp) -> None:
        """From names to an agent that serves them; then the routes answer."""
        self._reader.start()
        models = await asyncio.to_thread(self._read_models)
        self._supervisor = Supervisor(
            self._options,
            self._agent_command,
            self._metrics.request_overhead.observe,
            models.chains,
            lambda ready: models.leave_out(ready.left_out),
            self._settings.hang_timeout,
        )
        started = self._pool.start(*self._reader.hand_over())
        await asyncio.gather(self._supervisor.start(), started)
        models.require(self._names or ())
        models.limit(self._supervisor.stats.max_context)
        texts = Texts(self._pool, self._ledger, self._metrics.content_faults.add)
        self._serving = Serving(self._settings, models, self._supervisor, self._metrics, texts)
        exchangeable.app = make_app(self._serving, self._keys)
        self._announce(self.address, models, self._supervisor.stats)

    def _read_models(self) -> Models:
        with self._open_zoo() as zoo:
            most = self._options.engine.max_context
            return load_models(zoo, self._names, most, self._reader)

    def _make_http(self, app: ASGIApp) -> _HttpServer:
        return _HttpServer(
            uvicorn.Config(
                app,
                http=bounded_protocol(_limits(self._settings)),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level=self._settings.log_level,
                access_log=self._settings.log_level == "debug",
                server_header=False,
                timeout_keep_alive=self._settings.keep_alive,
                timeout_graceful_shutdown=2,
            )
        )

    async def _drain(self) -> None:
        """Refuse new requests; let those in flight finish until the timeout, then end them."""
        assert self._serving is not None and self._supervisor is not None
        self._serving.draining = True
        count, patience = self._serving.num_in_flight, self._settings.drain_timeout
        logger.info("draining: %d requests in flight, at most %g s", count, patience)
        await self._wait_for_requests(patience)
        self._supervisor.streams.fail_all(Overloaded("the server is shutting down"))
        await self._wait_for_requests(LAST_BYTES_SECONDS)

    async def _wait_for_requests(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        assert self._serving is not None
        while self._serving.num_in_flight and time.monotonic() < deadline:
            await asyncio.sleep(0.02)

    def _read_books(self) -> tuple[EngineStats, bool, int]:
        supervisor = self._supervisor
        assert supervisor is not None
        return supervisor.stats, supervisor.ready, supervisor.restarts


def _limits(settings: ServerSettings) -> Limits:
    """Raises the limit of descriptors to the machine's, and keeps some for all but clients."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if most == resource.RLIM_INFINITY:
        most = settings.max_connections + SPARE_DESCRIPTORS
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connections = min(settings.max_connections, max(most - SPARE_DESCRIPTORS, most // 2))
    return Limits(
        settings.head_timeout, settings.body_timeout, settings.reader_timeout, connections
    )


def _is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded. Raises ConfigError when that is impossible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, OverflowError, ValueError) as error:  # ValueError: a name that is none
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from error
    listener.setblocking(False)
    return listener
