"""Where a step's time goes: parts of turns and hops, as a trace that ui.perfetto.dev opens.

    with timeline.part("compute", hop): ...

`Timeline` is the off state, the null twin of `Recorder`: its methods are empty. What a part says
about its subject is asked for when the trace is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

LOOP = -1  # the track of whatever belongs to no span


class Subject(Protocol):
    """What a part can be about, such as the plan of a hop. Recorded parts keep it."""

    @property
    def span(self) -> int: ...

    def facts(self) -> dict[str, Any]: ...


class Timing(NamedTuple):
    """One stretch of time on one track."""

    name: str
    start: int  # nanoseconds
    end: int
    own: int  # nanoseconds that lie in no inner part
    path: tuple[str, ...]  # names of the parts around it, outermost first
    track: int  # span, or LOOP
    subject: Subject | None

    @property
    def duration(self) -> int:
        return self.end - self.start

    @property
    def facts(self) -> dict[str, Any]:
        return self.subject.facts() if self.subject is not None else {}


class Timeline:
    """Records nothing, at the cost of an empty call."""

    def part(self, name: str, subject: Subject | None = None) -> Timeline | _Open:
        """A context manager around one part; without a subject it lies on the track around it."""
        return self

    def now(self) -> int:
        """Nanoseconds; 0 while nothing is recorded."""
        return 0

    def waited(self, subject: Subject, since: int) -> None:
        """Rows of `subject` waited in its queue from `since` until now."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


OFF = Timeline()


class Recorder(Timeline):
    """Keeps every part until it is cleared. One thread only."""

    def __init__(self, settle: Callable[[], None] | None = None) -> None:
        """`settle` waits for the device; called before each reading of the clock, so that what
        runs behind the program's back is booked where it was asked for."""
        self.parts: list[Timing] = []  # in order of their ends: inner ones first
        self.waits: list[Timing] = []  # time in queues; may overlap each other
        self._settle = settle
        self._open: list[_Open] = []

    def part(self, name: str, subject: Subject | None = None) -> _Open:
        """A context manager around one part; without a subject it lies on the track around it."""
        return _Open(self, name, subject)

    def now(self) -> int:
        """Nanoseconds of a clock that never goes back."""
        if self._settle is not None:
            self._settle()
        return time.perf_counter_ns()

    def waited(self, subject: Subject, since: int) -> None:
        """Rows of `subject` waited in its queue from `since` until now."""
        now = self.now()
        self.waits.append(Timing("wait", since, now, now - since, (), subject.span, subject))

    def clear(self) -> None:
        """Forget what was recorded, as after a warm-up. No part may be open."""
        assert not self._open
        self.parts, self.waits = [], []

    def _begin(self, part: _Open) -> None:
        part.path = tuple(outer.name for outer in self._open)
        if part.subject is not None:
            part.track = part.subject.span
        elif self._open:
            part.track = self._open[-1].track
        self._open.append(part)
        part.start = self.now()

    def _end(self, part: _Open) -> None:
        end = self.now()
        assert self._open.pop() is part, "parts must end in the reverse order of their begins"
        own = end - part.start - part.inner
        if self._open:
            self._open[-1].inner += end - part.start
        self.parts.append(
            Timing(part.name, part.start, end, own, part.path, part.track, part.subject)
        )


class _Open:
    """A part that has begun."""

    __slots__ = ("_recorder", "inner", "name", "path", "start", "subject", "track")

    def __init__(self, recorder: Recorder, name: str, subject: Subject | None) -> None:
        self._recorder, self.name, self.subject = recorder, name, subject
        self.track, self.start, self.inner = LOOP, 0, 0
        self.path: tuple[str, ...] = ()

    def __enter__(self) -> None:
        self._recorder._begin(self)

    def __exit__(self, *error: object) -> None:
        self._recorder._end(self)


def trace_events(recorder: Recorder, tracks: Mapping[int, str]) -> list[dict[str, Any]]:
    """Events of the Chrome trace event format: parts are complete events ("X") on the track of
    their span, waits are asynchronous ones ("b", "e"). `tracks`: names by span."""
    names = {LOOP: "loop", **tracks}
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": track + 1, "args": {"name": name}}
        for track, name in names.items()
    ]
    origin = min((p.start for p in (*recorder.parts, *recorder.waits)), default=0)
    # an outer part before its inner ones, also where both begin in the same nanosecond
    for part in sorted(recorder.parts, key=lambda p: (p.start, -p.end, len(p.path))):
        length = {"dur": part.duration / 1000}
        events.append(_event(part, "X", part.start - origin, cat="engine", **length))
    for number, part in enumerate(recorder.waits):
        for phase, moment in (("b", part.start), ("e", part.end)):
            events.append(_event(part, phase, moment - origin, cat="queue", id=number))
    return events


def _event(part: Timing, phase: str, moment: int, **more: Any) -> dict[str, Any]:
    place = {"pid": 1, "tid": part.track + 1, "ts": moment / 1000}
    return {"name": part.name, "ph": phase, **place, **more, "args": part.facts}


def write_trace(path: Path, recorder: Recorder, tracks: Mapping[int, str]) -> None:
    """Write a file that https://ui.perfetto.dev and chrome://tracing open."""
    document = {"traceEvents": trace_events(recorder, tracks), "displayTimeUnit": "ms"}
    path.write_text(json.dumps(document), encoding="utf-8")
