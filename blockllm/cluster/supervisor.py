"""Front end's side of an agent process: starts it, routes its tokens, replaces it when it fails.

Every start hands over the same pinned chains, so that an agent that comes back serves what the one
before it served, whatever has happened to names in the zoo since.

starting → ready → (dies) → restarting → ready …     any → stopped
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec
import zmq

from blockllm.chain import encode_chains, fingerprints
from blockllm.cluster.agent_main import AgentOptions
from blockllm.cluster.messages import (
    AskStats,
    Cancel,
    Failed,
    FromAgent,
    Progress,
    Ready,
    Shutdown,
    Stats,
    Submit,
    Tokens,
)
from blockllm.cluster.streams import Sink, Streams
from blockllm.cluster.watch import LOOKS, Watch, processor_seconds
from blockllm.cluster.zmq_link import FrontLink
from blockllm.core import Chain, Request
from blockllm.errors import AgentDied, BadRequest, BlockllmError, EngineError, error_of
from blockllm.observability.stats import EngineStats

AGENT_COMMAND = (sys.executable, "-m", "blockllm.cluster.agent_main")
START_DESCRIPTORS = 32  # a link and a process, and some to spare
SILENT_SECONDS = 300.0  # of an agent that loads; building kernels takes less
LAST_WORDS_SECONDS = 0.5  # a dead process's last message may still be on its way
STOP_SECONDS = 5.0  # then it is killed

logger = logging.getLogger(__name__)


class State(StrEnum):
    """Where the agent process is in its life."""

    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


def backoff() -> Iterator[float]:
    """Seconds to wait before each further attempt: 0.1, 0.2, … 30, 30."""
    delay = 0.1
    while True:
        yield delay
        delay = min(delay * 2, 30.0)


class Supervisor:
    """Owns one agent process. Lives on one event loop; sinks are called there."""

    def __init__(
        self,
        options: AgentOptions,
        command: Sequence[str] = AGENT_COMMAND,
        entered: Callable[[float], None] | None = None,
        chains: Mapping[str, Chain] | None = None,
        served: Callable[[Ready], None] | None = None,
        hang_seconds: float = 30.0,
    ) -> None:
        """The agent serves `chains`. `entered` is told of each request how many seconds it took to
        the engine, `served` of each start of the agent what it serves. An agent that makes no
        progress for `hang_seconds` while requests wait is replaced. Raises EngineError when the
        chains are too many."""
        self._chains = encode_chains((chains or {}).values())
        self._fingerprints = fingerprints(chains or {})
        self.options = msgspec.structs.replace(options, chains_bytes=len(self._chains))
        self.state = State.STARTING
        self.progress = Progress("starting the agent")
        self.failure = ""  # why the last restart failed
        self.stats = EngineStats()
        self.restarts = 0
        self.streams = Streams()
        self._command = tuple(command)
        self._entered = entered
        self._served = served
        self._link: FrontLink | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._settled: asyncio.Future[BlockllmError | None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._hang_seconds = hang_seconds
        self._watcher: asyncio.Task[None] | None = None
        self._heard = 0  # messages from agents

    @property
    def alive(self) -> bool:
        """The agent process exists (it may be loading)."""
        return self._process is not None and self._process.returncode is None

    @property
    def ready(self) -> bool:
        """Requests are taken."""
        return self.state is State.READY

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Start the agent and wait until it is ready. Raises the agent's own error."""
        try:
            await self._launch()
        except BaseException:
            await self.stop()
            raise
        self._keeper = asyncio.create_task(self._keep_alive())
        self._watcher = asyncio.create_task(self._watch())

    async def ended(self) -> None:
        """Wait for the keeping of agents to end, which only a fault of ours does; raises it."""
        assert self._keeper is not None and self._watcher is not None
        tasks = {self._keeper, self._watcher}
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    def submit(self, request: Request, sink: Sink) -> None:
        """Generate; events go to `sink`. Raises AgentDied while no agent is ready."""
        if self.state is not State.READY or self._link is None:
            reason = self.failure or f"it is {self.state}, try in a few seconds"
            raise AgentDied(f"no agent is ready: {reason}")
        try:
            self._link.send(Submit(request, time.monotonic()))
        except ValueError as error:
            raise BadRequest(f"the request is too large: {error}") from error
        self.streams.open(request.id, sink)

    def cancel(self, request_id: str) -> None:
        """Forget a request and free what it holds; idempotent."""
        if self.streams.close(request_id) and self._link is not None:
            self._link.send(Cancel(request_id))

    async def stop(self) -> None:
        """End the agent, politely first."""
        was_ready = self.state is State.READY
        self.state = State.STOPPED
        for task in (self._keeper, self._watcher):
            if task is not None:
                task.cancel()
        if self._link is not None and was_ready:
            self._link.send(Shutdown())
        if self._process is not None:
            # one that is still loading reads no messages: there is nothing to wait for
            await _end(self._process, STOP_SECONDS if was_ready else 0.0)
        self.streams.fail_all(AgentDied("the server is stopping"))
        if self._link is not None:
            self._link.close()

    async def _launch(self) -> None:
        """One attempt. Raises the reason when the agent ends before it is ready."""
        self.progress = Progress("starting the agent")
        if self._link is not None:
            self._link.close()
        _check_descriptors()
        self._settled = asyncio.get_running_loop().create_future()
        self._link = FrontLink(self._deliver)
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, env=self._environment()
        )
        options = msgspec.structs.replace(self.options, address=self._link.address)
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(options) + b"\n" + self._chains)
        settled, ended = self._settled, asyncio.ensure_future(self._process.wait())
        waiting: set[asyncio.Future[Any]] = {settled, ended}
        await self._until_any(waiting)
        if not settled.done():
            await asyncio.wait({settled}, timeout=LAST_WORDS_SECONDS)
        if not settled.done():
            raise AgentDied(f"the agent ended with status {ended.result()} while loading")
        ended.cancel()
        failure = settled.result()
        if failure is not None:
            await _end(self._process, LAST_WORDS_SECONDS)
            raise failure
        self.state, self.failure = State.READY, ""

    def _environment(self) -> dict[str, str]:
        """Torch's own kernels take as many threads as ours: the process has one engine."""
        threads = self.options.engine.threads
        return dict(os.environ) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})

    async def _until_any(self, waiting: set[asyncio.Future[Any]]) -> None:
        """Wait for one of these while the agent loads. Kills an agent that says nothing."""
        done: set[asyncio.Future[Any]] = set()
        while not done:
            heard = self._heard
            done, _ = await asyncio.wait(
                waiting, timeout=SILENT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if not done and heard == self._heard:
                logger.error("the agent has said nothing for %g s; ending it", SILENT_SECONDS)
                assert self._process is not None
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()

    async def _keep_alive(self) -> None:
        while True:
            assert self._process is not None
            status = await self._process.wait()
            self.state = State.RESTARTING
            self.streams.fail_all(
                AgentDied("the agent ended while it held the request; it is being restarted")
            )
            self.restarts += 1
            text = "the agent ended with status %s; starting it again (restart %d)"
            logger.error(text, status, self.restarts)
            await self._relaunch()

    async def _watch(self) -> None:
        seconds = self._hang_seconds / LOOKS
        watch = Watch(seconds)
        while True:
            await asyncio.sleep(seconds)
            computed = processor_seconds(self.pid) if self.pid is not None else None
            waiting = self.ready and len(self.streams) > 0
            if watch.look(self._heard, computed, waiting) and self.ready:
                self._end_hung()
            elif waiting and self._link is not None:
                self._link.send(AskStats())  # answered between two turns

    def _end_hung(self) -> None:
        """Take the agent out at once; the keeper starts another."""
        self.state, self.progress = State.RESTARTING, Progress("ending an agent that hangs")
        text = f"the agent made no progress for {self._hang_seconds:g} s"
        logger.error("%s although requests wait; it is killed", text)
        self.streams.fail_all(AgentDied(f"{text} while it held the request; it is being restarted"))
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def _relaunch(self) -> None:
        for delay in backoff():
            self.progress = Progress(f"waiting {delay:g} s before the agent is started again")
            await asyncio.sleep(delay)
            try:
                return await self._launch()
            except Exception as error:  # the machine's too: no folder, descriptor or memory left
                unknown = not isinstance(error, BlockllmError | OSError | zmq.ZMQError)
                self.failure = f"it could not be started again: {error}"
                logger.error("the agent could not be started again: %s", error, exc_info=unknown)
                if self._process is not None:
                    await _end(self._process, 0.0)

    def _deliver(self, message: FromAgent) -> None:
        self._heard += 1
        match message:
            case Progress():
                self.progress = message
            case Ready():
                self._take_up(message)
            case Stats(stats=stats):
                self.stats = stats
            case Failed(kind=kind, message=text):
                failure = error_of(kind, text)
                self.state = State.RESTARTING
                self._settle(failure)
                self.streams.fail_all(failure)
            case _:
                if isinstance(message, Tokens) and self._entered is not None:
                    for seconds in message.entries:
                        self._entered(seconds)
                self.streams.deliver(message)

    def _take_up(self, ready: Ready) -> None:
        """The agent is there; it must serve the pinned chains, or say why it leaves one out."""
        expected = {
            model: known
            for model, known in self._fingerprints.items()
            if model not in ready.left_out
        }
        if ready.fingerprints != expected:
            self._settle(EngineError("the agent serves other chains than it was told to"))
            return
        self.stats = ready.stats
        if self._served is not None:
            self._served(ready)
        self._settle(None)

    def _settle(self, failure: BlockllmError | None) -> None:
        if self._settled is not None and not self._settled.done():
            self._settled.set_result(failure)


def _check_descriptors() -> None:
    """Raises OSError where a start would fail in its middle: uvloop leaves open what it had opened
    by then, for ever."""
    opened: list[int] = []
    try:
        for _ in range(START_DESCRIPTORS):
            opened.append(os.open(os.devnull, os.O_RDONLY))
    finally:
        for descriptor in opened:
            os.close(descriptor)


async def _end(process: asyncio.subprocess.Process, patience: float) -> None:
    try:
        await asyncio.wait_for(process.wait(), patience)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
