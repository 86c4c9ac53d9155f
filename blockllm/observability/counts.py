"""Counters and histograms of the front end: touched on the event loop, without locks."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from blockllm.observability import names


class Totals(Collector):
    """One counter, by labels. What was never counted is not shown: a server of five hundred
    models shows those that were asked.
    """

    def __init__(self, metric: names.Metric, *labels: str) -> None:
        self._metric = metric
        self._labels = labels
        self._totals: defaultdict[tuple[str, ...], float] = defaultdict(float)

    def add(self, *values: str, amount: float = 1.0) -> None:
        """Count; one value per label."""
        self._totals[values] += amount

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(*self._metric, labels=self._labels)
        for values, total in self._totals.items():
            family.add_metric(values, total)
        yield family


class FastHistogram(Collector):
    """For the path of a token: one bisection per observation."""

    def __init__(self, metric: names.Metric, bounds: Sequence[float]) -> None:
        """`bounds`: upper ends of the buckets, growing; what is above them all is counted too."""
        self._metric = metric
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, amount: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.sum += amount

    def collect(self) -> Iterator[Metric]:
        ends = [*map(floatToGoString, self.bounds), "+Inf"]
        buckets = list(zip(ends, map(float, accumulate(self.counts)), strict=True))
        yield HistogramMetricFamily(*self._metric, buckets=buckets, sum_value=self.sum)
