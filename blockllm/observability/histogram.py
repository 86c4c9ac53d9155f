"""A histogram for the path of a token: one bisection per observation, no lock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from blockllm.observability import names


class Observations:
    """Counts of one label value. Observed and read on one thread."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: upper ends of the buckets, growing; what is above them all is counted too."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, amount: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, amount)] += 1
        self.sum += amount


class FastHistogram(Collector):
    """One metric; with `models` each has its observations under the label `model_name`."""

    def __init__(
        self, metric: names.Metric, bounds: Sequence[float], models: Iterable[str] | None = None
    ) -> None:
        self._metric = metric
        self._labels = [] if models is None else ["model_name"]
        self._children = {
            label: Observations(bounds) for label in ([""] if models is None else models)
        }

    def of(self, model: str = "") -> Observations:
        """Where to observe."""
        return self._children[model]

    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(*self._metric, labels=self._labels)
        for label, child in self._children.items():
            ends = [*map(floatToGoString, child.bounds), "+Inf"]
            buckets = list(zip(ends, map(float, accumulate(child.counts)), strict=True))
            family.add_metric([label] if self._labels else [], buckets, child.sum)
        yield family
