"""An engine under a load whose requests come at given times, and when each token came."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from blockllm.core import Request
from blockllm.engine import Engine


class Arrival(NamedTuple):
    """A request and when it is sent, in seconds after the start."""

    at: float
    request: Request


class Times(NamedTuple):
    """When the tokens of one request came, in seconds after it was due, and which they were."""

    seconds: list[float]
    tokens: list[int]

    @property
    def first(self) -> float:
        """Time to first token."""
        return self.seconds[0]

    @property
    def gaps(self) -> list[float]:
        """Between neighbouring tokens."""
        return np.diff(self.seconds).tolist()


def play(engine: Engine, arrivals: Iterable[Arrival]) -> dict[str, Times]:
    """Send each request when it is due and run the engine until all are answered; by id. A request
    that is late since a turn was long counts from when it was due."""
    due = sorted(arrivals, key=lambda arrival: arrival.at)
    start, found = time.perf_counter(), {each.request.id: Times([], []) for each in due}
    sent_at = {each.request.id: start + each.at for each in due}
    position = 0
    while position < len(due) or engine.has_work:
        now = time.perf_counter() - start
        while position < len(due) and due[position].at <= now:
            engine.submit(due[position].request)
            position += 1
        if not engine.has_work:
            time.sleep(max(0.0, due[position].at - now))
            continue
        for event in engine.step():
            if event.error is not None:
                raise RuntimeError(event.error)
            if event.token is not None:
                times = found[event.request]
                times.seconds.append(time.perf_counter() - sent_at[event.request])
                times.tokens.append(event.token)
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """The value that so many percent of them do not exceed."""
    return float(np.percentile(list(values), share))
