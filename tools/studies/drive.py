"""An engine under a load whose requests come at given times, when each token came, and reports."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from blockllm.core import Request
from blockllm.engine import Engine
from tools.studies.measure_sharing import spread


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


class Clock(Protocol):
    """What times are read from."""

    def now(self) -> float:
        """Seconds since some moment."""
        ...

    def wait(self, seconds: float) -> None:
        """Let so many pass."""
        ...

    def turned(self, engine: Engine) -> None:
        """The engine has made a turn."""
        ...


class WallClock:
    """Real time."""

    def now(self) -> float:
        return time.perf_counter()

    def wait(self, seconds: float) -> None:
        time.sleep(seconds)

    def turned(self, engine: Engine) -> None:
        """It has taken as long as it has."""


class TurnClock:
    """Virtual time, the same on a busy machine: a turn takes so long, and longer by its rows."""

    def __init__(self, engine: Engine, turn: float, row: float) -> None:
        """`turn` and `row`: seconds."""
        self._turn, self._row = turn, row
        self._rows, self._now = engine.stats().spans[0].rows, 0.0

    def now(self) -> float:
        return self._now

    def wait(self, seconds: float) -> None:
        self._now += seconds

    def turned(self, engine: Engine) -> None:
        before, self._rows = self._rows, engine.stats().spans[0].rows
        self._now += self._turn + self._row * (self._rows - before)


def play(
    engine: Engine,
    arrivals: Iterable[Arrival],
    background: Container[str] = (),
    clock: Clock | None = None,
) -> dict[str, Times]:
    """Send each request when it is due and run the engine until all are answered; by id. A request
    that is late since a turn was long counts from when it was due. Requests of the `background` are
    not waited for: they are cancelled once the others are answered."""
    due = sorted(arrivals, key=lambda arrival: arrival.at)
    unanswered = {each.request.id for each in due if each.request.id not in background}
    clock = clock or WallClock()
    start, found = clock.now(), {each.request.id: Times([], []) for each in due}
    sent_at = {each.request.id: start + each.at for each in due}
    position = 0
    while unanswered:
        now = clock.now() - start
        while position < len(due) and due[position].at <= now:
            engine.submit(due[position].request)
            position += 1
        if not engine.has_work:
            clock.wait(max(0.0, due[position].at - now))
            continue
        events = engine.step()
        clock.turned(engine)
        for event in events:
            if event.error is not None:
                raise RuntimeError(event.error)
            if event.token is not None:
                times = found[event.request]
                times.seconds.append(clock.now() - sent_at[event.request])
                times.tokens.append(event.token)
            if event.finish is not None:
                unanswered.discard(event.request)
    for each in due:
        engine.cancel(each.request.id)
    return found


def percentile(values: Iterable[float], share: float) -> float:
    """The value that so many percent of them do not exceed."""
    return float(np.percentile(list(values), share))


def ratio_table(found: Mapping[str, Sequence[Any]]) -> str:
    """Figures (named tuples) of every run by arm. Medians of the first arm; of the others, the
    ratio to it: median, least and largest."""
    first, *others = found
    lines = [
        "| | " + " | ".join([first, *(f"{arm} / {first}" for arm in others)]) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for index, name in enumerate(found[first][0]._fields):
        own = [seen[index] for seen in found[first]]
        cells = [f"{statistics.median(own):.3g}"]
        for arm in others:
            cells.append(spread([a[index] / b for a, b in zip(found[arm], own, strict=True)]))
        lines.append(f"| {name.replace('_', ' ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_data(runs: Mapping[str, Sequence[Any]]) -> dict[str, list[dict[str, float]]]:
    """Figures by arm as JSON takes them."""
    return {arm: [seen._asdict() for seen in own] for arm, own in runs.items()}


def write_report(options: argparse.Namespace, name: str, report: Mapping[str, Any]) -> None:
    """Put the report and the load into the folder `--out`, if there is one; paths stay out."""
    out: Path | None = options.out
    if out is None:
        return
    given = vars(options).items()
    load = {key: str(value) for key, value in given if not isinstance(value, Path)}
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"load": load, **report}, indent=1)
    (out / name).write_text(text + "\n", encoding="utf-8")
