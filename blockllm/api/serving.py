"""What the routes share: one server's parts, and the way from a request body to a Generation."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request as HttpRequest

from blockllm.api import limits, wire
from blockllm.api.answers import PromptTokensDetails, ServedTier, Usage
from blockllm.api.bodies import UnreadBodies, read_body
from blockllm.api.choice import Choice, Piece, TextRules
from blockllm.api.generation import AgentPort, Generation, make_choices
from blockllm.api.keys import salt_of
from blockllm.api.models import Models, ServedModel
from blockllm.api.texts import Texts
from blockllm.cluster.messages import Progress
from blockllm.cluster.streams import Backlog
from blockllm.config import ServerSettings
from blockllm.core import Request, Sampling
from blockllm.errors import Overloaded
from blockllm.observability.metrics import ServerMetrics

T = TypeVar("T")
Body = TypeVar("Body", bound=msgspec.Struct)
INLINE_IDS = 4096  # more are read on another thread
UNREAD_BODIES = 32  # bodies of the largest size that may be under way at once
MOST_WAITING = 1 << 19  # tokens and log-probabilities for clients to take; about 100 bytes each


class Caller(NamedTuple):
    """The tenant that asks, and when the request's last byte came (monotonic clock)."""

    tenant: str
    arrival: float


def caller_of(request: HttpRequest) -> Caller:
    """What guard and protocol noted about a request."""
    state = request.scope["state"]
    return Caller(state["tenant"], state.get("received") or time.monotonic())


class SupervisedAgent(AgentPort, Protocol):
    """An agent whose health can be asked for; cluster.supervisor.Supervisor is one."""

    @property
    def alive(self) -> bool: ...
    @property
    def ready(self) -> bool: ...
    @property
    def progress(self) -> Progress: ...


class Serving:
    """The parts of one server."""

    def __init__(
        self,
        settings: ServerSettings,
        models: Models,
        agent: SupervisedAgent,
        metrics: ServerMetrics,
        texts: Texts | None = None,
    ) -> None:
        """`texts`: without it the models' texts are read in this process, for tests."""
        self.texts = texts or Texts()
        self.settings = settings
        self.models = models
        self.agent = agent
        self.metrics = metrics
        self.draining = False
        self.num_in_flight = 0
        self.backlog = Backlog(MOST_WAITING)
        self._unread = UnreadBodies(UNREAD_BODIES * settings.max_body_bytes)

    async def read(self, request: HttpRequest, kind: type[Body]) -> Body:
        """The body of a request, within the limits."""
        with self._unread.of(request.scope["state"]["tenant"]) as take:
            return await read_body(request, kind, self.settings.max_body_bytes, take)

    @contextlib.contextmanager
    def in_flight(self) -> Iterator[None]:
        """Counts one request that draining has to wait for. Raises Overloaded when draining."""
        if self.draining:
            raise Overloaded("the server is shutting down")
        self.num_in_flight += 1
        try:
            yield
        finally:
            self.num_in_flight -= 1

    def defaults(self, model: ServedModel) -> limits.Defaults:
        """What sampling fields are that a request leaves out, where they are not OpenAI's."""
        return model.defaults if self.settings.sampling_defaults == "model" else {}

    def prepare(
        self,
        body: wire.GenerationFields,
        model: ServedModel,
        caller: Caller,
        prompts: Sequence[Sequence[int]],
        samplings: Sequence[Sampling],
    ) -> PreparedCall:
        """The requests of one call. Nothing is submitted yet. Raises BadRequest."""
        n = limits.read_choices(body, self.settings)
        stops = limits.read_stops(body.stop, self.settings.max_stop)
        rules = TextRules(stops, body.include_stop_str_in_output, body.skip_special_tokens)
        template = Request(
            id="",
            model=model.name,
            prompt=(),
            tenant=caller.tenant,
            salt=self._salt(caller.tenant, body.cache_salt or ""),
            arrival=caller.arrival,
            offline=body.service_tier == "flex",
        )
        choices = make_choices(template, prompts, samplings, n, model.decoder, rules)
        return PreparedCall(self, model, body, prompts, choices, n)

    def _salt(self, tenant: str, cache_salt: str) -> str:
        if len(cache_salt) > limits.MAX_SALT:
            got, most = f"{len(cache_salt)} characters", f"up to {limits.MAX_SALT}"
            raise limits.refuse("cache_salt", got, most)
        return salt_of("" if self.settings.shared_prefixes else tenant, cache_salt)


class PreparedCall:
    """One call, ready to run: its requests and how its answer looks."""

    def __init__(
        self,
        serving: Serving,
        model: ServedModel,
        body: wire.GenerationFields,
        prompts: Sequence[Sequence[int]],
        choices: Sequence[Choice],
        n: int,
    ) -> None:
        self.serving = serving
        self.model = model
        self.prompts = prompts
        self.choices = choices
        self.n = n
        self.id = choices[0].request.id.rpartition("-")[0]
        self.body = body
        self.created = int(time.time())
        options = body.stream_options or wire.StreamOptions()
        self.include_usage = bool(options.include_usage)
        self.continuous_usage = bool(options.continuous_usage_stats)
        self.wants_ids = bool(body.return_token_ids)

    @property
    def service_tier(self) -> ServedTier | UnsetType:
        """What the answer says served it; nothing where the request did not name a tier."""
        if self.body.service_tier is None:
            return UNSET
        return "flex" if self.body.service_tier == "flex" else "default"

    def start(self) -> Generation:
        """A generation with its clocks running; enter it to be sure that it is cleaned up."""
        timer = partial(self.serving.metrics.timer, self.model.name)
        requests = [choice.request for choice in self.choices]
        timers = [timer(len(request.prompt), request.arrival) for request in requests]
        return Generation(self.serving.agent, self.choices, timers, self.serving.backlog)

    def has_plain_events(self, piece: Piece) -> bool:
        """An event for this piece says nothing but text, and none is due without text."""
        shown = self.wants_ids or piece.logprobs or piece.finish_reason
        return not shown and not (self.continuous_usage and piece.text)

    def usage(self) -> Usage:
        """Counts so far; a prompt is counted once however many answers it has."""
        num_prompt = sum(map(len, self.prompts))
        num_new = sum(choice.num_tokens for choice in self.choices)
        cached = sum(choice.cached_tokens for choice in self.choices[:: self.n])
        return Usage(num_prompt, num_new, num_prompt + num_new, PromptTokensDetails(cached))


async def chat_ids(
    serving: Serving,
    caller: Caller,
    model: ServedModel,
    messages: Sequence[wire.Message],
    fields: wire.TemplateFields,
    has_to_fit: bool,
    add_special: bool = False,
) -> list[int]:
    """The prompt of a conversation. Raises BadRequest and ContextTooLong."""
    limits.check_count("messages", len(messages), limits.MAX_MESSAGES, least=1)
    as_tokens = serving.settings.special_tokens_in_messages
    flags = add_special, as_tokens, has_to_fit
    return await serving.texts.chat(caller.tenant, model, messages, fields, *flags)


async def maybe_elsewhere(size: int, work: Callable[[], T]) -> T:
    """The result of `work` on this many ids, on another thread if they are many."""
    return work() if size <= INLINE_IDS else await asyncio.to_thread(work)
