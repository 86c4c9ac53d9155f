"""Distributions of a workload: lengths, arrival times, models. A generator in, numbers out."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from blockllm.errors import ConfigError

Arrival = Literal["poisson", "gamma", "bursty", "uniform"]

_LENGTHS = {"fixed": 1, "uniform": 2, "lognormal": 2, "geometric": 1}
_BURST_REQUESTS = 16  # requests in one on-and-off cycle of `bursty`, on average
_MAF_SLOTS = 20  # stretches of a workload in which a model's share stays the same
_MAF_SHAPE = 0.25  # of the gamma that scales a share in a slot: bursts of a few times the mean


def draw_lengths(law: str, count: int, random: np.random.Generator) -> list[int]:
    """`count` lengths in tokens, each at least 1.

    `law`: `128` or `fixed:128`; `uniform:16:64` (both included); `lognormal:128:0.6` (median,
    sigma of the logarithm; cut at eight times the median); `geometric:32` (mean). Raises
    ConfigError.
    """
    name, values = _parse_length(law)
    if name == "fixed":
        drawn = np.full(count, values[0])
    elif name == "uniform":
        drawn = random.integers(int(values[0]), int(values[1]) + 1, count)
    elif name == "lognormal":
        drawn = random.lognormal(math.log(values[0]), values[1], count).clip(1, 8 * values[0])
    else:
        drawn = random.geometric(1 / values[0], count)
    return [max(1, round(float(value))) for value in drawn]


def _parse_length(law: str) -> tuple[str, list[float]]:
    name, *words = law.split(":") if ":" in law else ("fixed", law)
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    wrong = len(values) != _LENGTHS.get(name) or values[0] < 1
    if wrong or (name == "uniform" and values[1] < values[0]):
        raise ConfigError(
            f"length {law!r}: expected N, uniform:LOW:HIGH, lognormal:MEDIAN:SIGMA or "
            "geometric:MEAN, in tokens and at least 1"
        )
    return name, values


def draw_arrivals(
    law: Arrival, rate: float, burstiness: float, count: int, random: np.random.Generator
) -> list[float]:
    """Seconds after the start at which requests are sent, ascending; `rate` a second on average.

    `uniform`: evenly spaced. `poisson`: exponential gaps. `gamma`: gaps with `burstiness` as
    coefficient of variation (1 is Poisson, more comes in clumps). `bursty`: on and off; while on,
    Poisson at `burstiness` times the rate, a cycle holding 16 requests on average.
    """
    if law == "uniform":
        gaps = np.full(count, 1 / rate)
    elif law == "gamma":
        shape = 1 / burstiness**2
        gaps = random.gamma(shape, 1 / (rate * shape), count)
    elif law == "poisson":
        gaps = random.exponential(1 / rate, count)
    else:
        gaps = random.exponential(1 / (rate * burstiness), count)
    times = np.cumsum(gaps) - gaps[0]
    if law == "bursty":
        cycle = _BURST_REQUESTS / rate
        on = cycle / burstiness
        times = times // on * cycle + times % on
    return [float(time) for time in times]


def check_popularity(law: str) -> float:
    """Exponent of `zipf:ALPHA`, 0 for the other laws. Raises ConfigError for an unknown law."""
    name, _, text = law.partition(":")
    try:
        alpha = float(text) if name == "zipf" else 0.0
    except ValueError:
        alpha = -1.0
    if alpha < 0 or name not in ("uniform", "zipf", "maf") or (text and name != "zipf"):
        raise ConfigError(f"popularity {law!r}: expected uniform, zipf:ALPHA or maf")
    return alpha


def draw_models(law: str, models: int, count: int, random: np.random.Generator) -> list[int]:
    """Which of `models` models each request asks for, as positions.

    `uniform`: in turn, so that counts differ by one at most. `zipf:ALPHA`: the k-th model has
    weight k^-ALPHA. `maf`: shaped like the Microsoft Azure Functions trace of 2019 (Shahrad et
    al., Serverless in the Wild, USENIX ATC 2020), which AlpaServe and its successors replay for
    model serving: few functions get most calls (here Zipf with exponent 1), and the calls of each
    come in bursts (here its share is scaled by a gamma draw of mean 1 that changes twenty times
    over the workload). It imitates these two properties; it is not the trace.
    """
    alpha = check_popularity(law)
    if law == "uniform":
        return [index % models for index in range(count)]
    shares = np.arange(1, models + 1) ** -(alpha or float(law == "maf"))
    if law != "maf":
        return _choose(shares, count, random)
    chosen: list[int] = []
    for slot in range(_MAF_SLOTS):
        size = count * (slot + 1) // _MAF_SLOTS - count * slot // _MAF_SLOTS
        weights = shares * random.gamma(_MAF_SHAPE, 1 / _MAF_SHAPE, models) + 1e-12
        chosen += _choose(weights, size, random)
    return chosen


def _choose(weights: np.ndarray, count: int, random: np.random.Generator) -> list[int]:
    chosen: list[int] = random.choice(len(weights), count, p=weights / weights.sum()).tolist()
    return chosen
