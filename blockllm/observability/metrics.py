"""What one server measures, and its Prometheus text.

One private registry per server. Labels are bounded: models are the served ones, and only those that
were asked are shown. Distributions are the whole server's: five hundred models with all buckets
would be megabytes. On the path of a token two histograms are touched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from blockllm.observability import names
from blockllm.observability.agent_state import AgentState
from blockllm.observability.counts import FastHistogram, Totals
from blockllm.observability.stats import EngineStats

# buckets are vLLM's, so that its dashboards can be used
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0),
    *(7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
# what the front end adds: its target is 10 ms, so the steps are fine below and coarse above
OVERHEAD_SECONDS = (
    *(0.0001, 0.00015, 0.0002, 0.0003, 0.0004, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003),
    *(0.004, 0.005, 0.0065, 0.008, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 1.0, 5.0),
)
TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


class RequestTimer:
    """Clock of one request; `arrival` is the monotonic clock when its last byte came."""

    def __init__(
        self, metrics: ServerMetrics, model: str, num_prompt_tokens: int, arrival: float
    ) -> None:
        self._metrics = metrics
        self._model = model
        self._num_prompt_tokens = num_prompt_tokens
        self._arrival = arrival
        self._first = 0.0
        self._last = 0.0
        self._num_tokens = 0

    def admitted(self, queue_seconds: float) -> None:
        """The engine took the request up after this long."""
        self._metrics.queue_time.observe(queue_seconds)

    def tokens(self, count: int) -> None:
        """One output with `count` tokens has arrived."""
        metrics, now = self._metrics, time.monotonic()
        if self._num_tokens:
            metrics.inter_token.observe(now - self._last)
        else:
            self._first = now
            metrics.first_token.observe(now - self._arrival)
            metrics.first_token_seconds.add(self._model, amount=now - self._arrival)
        self._last = now
        self._num_tokens += count

    def end(self, reason: str) -> None:
        """The request has ended: stop, length, abort or error."""
        metrics, seconds = self._metrics, time.monotonic() - self._arrival
        metrics.success.add(self._model, reason)
        metrics.request_seconds.add(self._model, amount=seconds)
        metrics.latency.observe(seconds)
        metrics.prompt_tokens.observe(self._num_prompt_tokens)
        metrics.generation_tokens.observe(self._num_tokens)
        if self._num_tokens > 1:
            metrics.per_token.observe((self._last - self._first) / (self._num_tokens - 1))


class ServerMetrics:
    """Everything one server measures. Touched and collected on one thread."""

    def __init__(self, read: Callable[[], tuple[EngineStats, bool, int]]) -> None:
        """`read` returns the agent's books, whether it is ready, and how often it restarted."""
        self.queue_time = FastHistogram(names.QUEUE_TIME, REQUEST_SECONDS)
        self.first_token = FastHistogram(names.TIME_TO_FIRST_TOKEN, FIRST_TOKEN_SECONDS)
        self.inter_token = FastHistogram(names.INTER_TOKEN_LATENCY, TOKEN_SECONDS)
        self.per_token = FastHistogram(names.TIME_PER_OUTPUT_TOKEN, TOKEN_SECONDS)
        self.latency = FastHistogram(names.LATENCY, REQUEST_SECONDS)
        self.request_overhead = FastHistogram(names.REQUEST_OVERHEAD, OVERHEAD_SECONDS)
        self.token_overhead = FastHistogram(names.TOKEN_OVERHEAD, OVERHEAD_SECONDS)
        self.prompt_tokens = FastHistogram(names.REQUEST_PROMPT_TOKENS, TOKENS)
        self.generation_tokens = FastHistogram(names.REQUEST_GENERATION_TOKENS, TOKENS)
        self.success = Totals(names.SUCCESS, "model_name", "finished_reason")
        self.first_token_seconds = Totals(names.MODEL_FIRST_TOKEN_SECONDS, "model_name")
        self.request_seconds = Totals(names.MODEL_REQUEST_SECONDS, "model_name")
        self.refused = Totals(names.REFUSED, "status")
        self.content_faults = Totals(names.CONTENT_FAULTS, "model_name", "part")
        self._registry = CollectorRegistry()
        for collector in (AgentState(read), *vars(self).values()):
            if isinstance(collector, AgentState | FastHistogram | Totals):
                self._registry.register(collector)

    def timer(self, model: str, num_prompt_tokens: int, arrival: float) -> RequestTimer:
        """The clock of one request, running since `arrival`."""
        return RequestTimer(self, model, num_prompt_tokens, arrival)

    def collect(self) -> list[Metric]:
        """A snapshot of everything, to be written as text elsewhere."""
        return list(self._registry.collect())

    def render(self) -> bytes:
        """The Prometheus text format."""
        return write(self.collect())


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def write(families: Iterable[Metric]) -> bytes:
    """Collected families in the Prometheus text format; on any thread."""
    return generate_latest(_Collected(families))
