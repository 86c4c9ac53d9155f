"""From the engine's books and the front end's clock to Prometheus text.

One private registry per server. Labels are bounded: models are the served ones, spans the loaded
ones. On the path of a token two histograms are touched; the engine's books are read at scrape time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from blockllm.observability import names
from blockllm.observability.histogram import FastHistogram, Observations
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


class AgentState(Collector):
    """The engine's latest books, as metric families."""

    def __init__(self, read: Callable[[], tuple[EngineStats, bool, int]]) -> None:
        """`read` returns books, whether the agent is ready, and how often it was restarted."""
        self._read = read

    def collect(self) -> Iterator[Metric]:
        stats, ready, restarts = self._read()
        yield from _levels(stats, ready)
        yield from _counters(stats, restarts)
        yield from _spans(stats)


def _levels(stats: EngineStats, ready: bool) -> Iterator[Metric]:
    used = stats.num_pages - stats.num_pages_free - stats.num_pages_cached
    for metric, value in (
        (names.RUNNING, stats.num_running),
        (names.WAITING, stats.num_waiting),
        (names.KV_USAGE, used / max(stats.num_pages, 1)),
        (names.KV_BYTES, stats.kv_bytes),
        (names.BLOCKS, stats.num_blocks),
        (names.SPANS, len(stats.spans)),
        (names.WEIGHT_BYTES, stats.weight_bytes),
        (names.WEIGHT_BYTES_UNSHARED, stats.weight_bytes_unshared),
        (names.AGENT_UP, int(ready)),
    ):
        yield GaugeMetricFamily(*metric, value=value)
    pages = GaugeMetricFamily(*names.PAGES, labels=["state"])
    pages.add_metric(["used"], used)
    pages.add_metric(["cached"], stats.num_pages_cached)
    pages.add_metric(["free"], stats.num_pages_free)
    yield pages


def _counters(stats: EngineStats, restarts: int) -> Iterator[Metric]:
    for metric, value in (
        (names.PREFIX_QUERIES, stats.prefix_queries),
        (names.PREFIX_HITS, stats.prefix_hits),
        (names.PREEMPTIONS, stats.preemptions),
        (names.TURNS, stats.turns),
        (names.AGENT_RESTARTS, restarts),
    ):
        yield CounterMetricFamily(*metric, value=value)
    for metric, by_model in (
        (names.PROMPT_TOKENS, stats.prompt_tokens),
        (names.GENERATION_TOKENS, stats.generation_tokens),
    ):
        family = CounterMetricFamily(*metric, labels=["model_name"])
        for model, value in by_model.items():
            family.add_metric([model], value)
        yield family


def _spans(stats: EngineStats) -> Iterator[Metric]:
    hops = CounterMetricFamily(*names.SPAN_HOPS, labels=["span"])
    rows = CounterMetricFamily(*names.SPAN_ROWS, labels=["span"])
    models = GaugeMetricFamily(*names.SPAN_MODELS, labels=["span"])
    for span in stats.spans:
        hops.add_metric([span.name], span.hops)
        rows.add_metric([span.name], span.rows)
        models.add_metric([span.name], len(span.models))
    yield from (hops, rows, models)


class ModelMetrics:
    """The front end's measurements of one model; children are looked up once, here."""

    def __init__(self, families: _Families, model: str) -> None:
        self.queue_time = families.queue_time.labels(model)
        self.first_token = families.first_token.labels(model)
        self.inter_token = families.inter_token.of(model)
        self.per_token = families.per_token.labels(model)
        self.latency = families.latency.labels(model)
        self.prompt_tokens = families.prompt_tokens.labels(model)
        self.generation_tokens = families.generation_tokens.labels(model)
        self.success = {
            reason: families.success.labels(model, reason)
            for reason in ("stop", "length", "abort", "error")
        }

    def timer(self, num_prompt_tokens: int, arrival: float) -> RequestTimer:
        """The clock of one request, running since `arrival`."""
        return RequestTimer(self, num_prompt_tokens, arrival)


class RequestTimer:
    """Clock of one request; `arrival` is the monotonic clock when its last byte came."""

    def __init__(self, metrics: ModelMetrics, num_prompt_tokens: int, arrival: float) -> None:
        self._metrics = metrics
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
        now = time.monotonic()
        if self._num_tokens:
            self._metrics.inter_token.observe(now - self._last)
        else:
            self._first = now
            self._metrics.first_token.observe(now - self._arrival)
        self._last = now
        self._num_tokens += count

    def end(self, reason: str) -> None:
        """The request has ended: stop, length, abort or error."""
        metrics = self._metrics
        metrics.success[reason].inc()
        metrics.latency.observe(time.monotonic() - self._arrival)
        metrics.prompt_tokens.observe(self._num_prompt_tokens)
        metrics.generation_tokens.observe(self._num_tokens)
        if self._num_tokens > 1:
            metrics.per_token.observe((self._last - self._first) / (self._num_tokens - 1))


class _Families:
    def __init__(self, registry: CollectorRegistry, models: Sequence[str]) -> None:
        def histogram(metric: names.Metric, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(*metric, ["model_name"], buckets=buckets, registry=registry)

        self.queue_time = histogram(names.QUEUE_TIME, REQUEST_SECONDS)
        self.first_token = histogram(names.TIME_TO_FIRST_TOKEN, FIRST_TOKEN_SECONDS)
        self.inter_token = FastHistogram(names.INTER_TOKEN_LATENCY, TOKEN_SECONDS, models)
        registry.register(self.inter_token)
        self.per_token = histogram(names.TIME_PER_OUTPUT_TOKEN, TOKEN_SECONDS)
        self.latency = histogram(names.LATENCY, REQUEST_SECONDS)
        self.prompt_tokens = histogram(names.REQUEST_PROMPT_TOKENS, TOKENS)
        self.generation_tokens = histogram(names.REQUEST_GENERATION_TOKENS, TOKENS)
        self.success = Counter(*names.SUCCESS, ["model_name", "finished_reason"], registry=registry)


class ServerMetrics:
    """Everything one server measures."""

    def __init__(
        self, models: Iterable[str], read: Callable[[], tuple[EngineStats, bool, int]]
    ) -> None:
        self._registry = CollectorRegistry()
        served = list(models)
        families = _Families(self._registry, served)
        self._models = {model: ModelMetrics(families, model) for model in served}
        self.request_overhead = self._overhead(names.REQUEST_OVERHEAD)
        self.token_overhead = self._overhead(names.TOKEN_OVERHEAD)
        self._registry.register(AgentState(read))

    def of(self, model: str) -> ModelMetrics:
        """The measurements of one served model."""
        return self._models[model]

    def _overhead(self, metric: names.Metric) -> Observations:
        histogram = FastHistogram(metric, OVERHEAD_SECONDS)
        self._registry.register(histogram)
        return histogram.of()

    def render(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
