"""From the engine's books to metric families, read at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from blockllm.observability import names
from blockllm.observability.stats import EngineStats


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
            if value:  # models that were asked, as elsewhere
                family.add_metric([model], value)
        yield family


def _spans(stats: EngineStats) -> Iterator[Metric]:
    """Of the spans that have run: a zoo of many models has very many."""
    hops = CounterMetricFamily(*names.SPAN_HOPS, labels=["span"])
    rows = CounterMetricFamily(*names.SPAN_ROWS, labels=["span"])
    models = GaugeMetricFamily(*names.SPAN_MODELS, labels=["span"])
    for span in stats.spans:
        if not span.hops:
            continue
        hops.add_metric([span.name], span.hops)
        rows.add_metric([span.name], span.rows)
        models.add_metric([span.name], len(span.models))
    yield from (hops, rows, models)
