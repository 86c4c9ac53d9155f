"""The real front end over a stand-in agent: this module is either process.

The server is `blockllm serve` with its tokenizer, template, link and HTTP; only the agent's engine
is replaced by one that gives every request its next token at a steady pace, or as fast as it can.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from blockllm.api.detokenize import ByteDetokenizer
from blockllm.api.template import ChatTemplate
from blockllm.api.tokenizer import TextTokenizer
from blockllm.chain import fingerprints
from blockllm.cluster.agent import Loaded
from blockllm.cluster.agent_main import Job
from blockllm.cluster.agent_main import main as run_agent
from blockllm.core import Chain, Finish, ModelCard, Request, TokenEvent
from blockllm.observability.stats import EngineStats
from tools.demo import FAMILY

ASSETS = FAMILY / "base"
MODEL = "stand-in"
MAX_CONTEXT = 4096
FIRST_ID, NUM_IDS = 300, 1500  # ordinary tokens of the demo tokenizer


class Options(msgspec.Struct, frozen=True):
    """How one stand-in server runs; with `stages_file` its stages are timed and written there."""

    seconds_per_token: float
    stages_file: str = ""


class PacedEngine:
    """Gives every request one token per turn; a turn takes at least `seconds_per_token`."""

    def __init__(self, seconds_per_token: float) -> None:
        self._pace = seconds_per_token
        self._requests: dict[str, tuple[Request, int]] = {}
        self._turn_started = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    def submit(self, request: Request) -> None:
        self._requests[request.id] = (request, 0)

    def cancel(self, request_id: str) -> None:
        self._requests.pop(request_id, None)

    def step(self) -> list[TokenEvent]:
        time.sleep(max(self._turn_started + self._pace - time.monotonic(), 0.0))
        self._turn_started = time.monotonic()
        return [self._advance(request, count) for request, count in list(self._requests.values())]

    def _advance(self, request: Request, count: int) -> TokenEvent:
        is_last = count + 1 == request.sampling.max_tokens
        if is_last:
            del self._requests[request.id]
        else:
            self._requests[request.id] = (request, count + 1)
        token = FIRST_ID + (count * 7 + len(request.prompt)) % NUM_IDS
        return TokenEvent(request.id, token, finish=Finish.LENGTH if is_last else None)

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._requests), max_context={MODEL: MAX_CONTEXT})

    def check_books(self) -> None:
        assert not self._requests


class ZooStandIn:
    """A zoo with one model: the demo family's tokenizer and template, no weights."""

    def cards(self) -> list[ModelCard]:
        return [ModelCard(MODEL, "full", "llama", max_context=MAX_CONTEXT)]

    def chains(self, names: Sequence[str]) -> dict[str, Chain]:
        return {name: Chain(name, (), MAX_CONTEXT) for name in names}

    def asset(self, name: str, file: str) -> Path | None:
        path = ASSETS / file
        return path if path.exists() else None


class StageTimes:
    """Seconds and calls of the front end's stages, by wrapping the functions that do them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.calls: dict[str, int] = {}

    def install(self) -> None:
        """Wrap the stages of this process."""
        from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

        from blockllm.api import stream, wire
        from blockllm.cluster.zmq_link import Codec, FrontLink

        for stage, owner, name in (
            ("parse", wire, "parse"),
            ("template", ChatTemplate, "render"),
            ("tokenise", TextTokenizer, "encode"),
            ("link in", FrontLink, "send"),
            ("link out", Codec, "decode"),
            ("detokenise", ByteDetokenizer, "feed"),
            ("serialise", stream, "encode_events"),
        ):
            setattr(owner, name, self._timed(stage, getattr(owner, name)))
        send = RequestResponseCycle.send
        RequestResponseCycle.send = self._timed_send(send)  # type: ignore[method-assign]

    def write(self, file: str) -> None:
        """Everything seen, and the CPU time of the process, as JSON."""
        seen = {"seconds": self.seconds, "calls": self.calls, "cpu_seconds": time.process_time()}
        Path(file).write_text(json.dumps(seen), encoding="utf-8")

    def _book(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.calls[stage] = self.calls.get(stage, 0) + 1

    def _timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._book(stage, time.perf_counter() - started)

        return timed

    def _timed_send(self, send: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any) -> None:
            started = time.perf_counter()
            await send(*args)
            self._book("write", time.perf_counter() - started)

        return timed


def run_server(options: Options) -> None:
    """Serve until SIGTERM, as `blockllm serve` does."""
    from blockllm.cli import serve
    from blockllm.config import EngineSettings, ServerSettings

    stages = StageTimes()
    if options.stages_file:
        stages.install()
    command = (sys.executable, "-m", "tools.studies.frontend_standin", "agent")
    settings = ServerSettings(port=0, log_level="warning")
    name = msgspec.json.encode(options).decode()
    serve.run_server(ZooStandIn, name, None, EngineSettings(), settings, command)
    if options.stages_file:
        stages.write(options.stages_file)


def load(job: Job) -> Loaded:
    """The agent's engine; the name of its zoo holds the options."""
    options = msgspec.json.decode(job.options.zoo, type=Options)
    return Loaded(PacedEngine(options.seconds_per_token), fingerprints(job.chains))


if __name__ == "__main__":
    if sys.argv[1] == "agent":
        # the thread that watches the parent blocks in a read
        os._exit(run_agent(load))
    run_server(msgspec.json.decode(sys.argv[1], type=Options))
