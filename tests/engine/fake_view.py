"""Sequences and pages that policies can be asked about without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from blockllm.engine.work import Admission, Known, Offline, PausedRows, View

_NUMBERS = count(1)


@dataclass(eq=False)
class FakeSequence:
    """One row takes one page."""

    num_new: int
    held: int = 0  # pages
    model: str = "m"
    tenant: str = ""
    pool: int = 0
    num_stops: int = 4
    num_computed: int = 0
    last_turn: int = 0
    own_turn: int = 0
    hit: int = 0  # rows on known pages
    paused: Sequence[PausedRows] = ()
    is_blocked: bool = False
    is_offline: bool = False
    most_pages: int = 0
    number: int = field(default_factory=lambda: next(_NUMBERS))

    @property
    def num_begun(self) -> int:
        return self.num_computed + sum(rows.rows for rows in self.paused)


@dataclass
class FakeTenant:
    """What a tenant was served, and its quotas."""

    counter: float = 0.0
    weight: float = 1.0
    max_rows: int = 0
    max_pages: int = 0
    num_pages: int = 0
    num_running: int = 0


@dataclass
class FakePages:
    """Counts what a plan takes."""

    sequences: dict[int, FakeSequence]
    available: int = 1000
    reserve: int = 0
    is_idle: bool = True

    def lacking(self, known: Known, rows: int) -> int:
        return rows

    def held(self, known: Known) -> int:
        return self.sequences[known.number].held

    def admission(self, known: Known) -> Admission:
        own = self.sequences[known.number]
        return Admission(own.hit, own.num_new, own.num_new + 1, own.is_blocked)

    def take(self, count: int) -> None:
        self.available -= count

    def release(self, known: Known) -> None:
        self.available += self.held(known)

    def admit(self, known: Known, rows: int) -> None:
        self.available -= rows
        self.is_idle = False


def make_view(
    running: Sequence[FakeSequence] = (),
    waiting: Sequence[FakeSequence] = (),
    max_rows: int = 100,
    max_sequences: int = 64,
    tenants: dict[str, FakeTenant] | None = None,
    **pages: int | bool,
) -> View:
    """A view of one pool."""
    sequences = {each.number: each for each in (*running, *waiting)}
    pool = FakePages(sequences, **pages)  # type: ignore[arg-type]
    above, below = (
        {
            name: replace(
                (tenants or {}).get(name, FakeTenant()),
                num_running=sum(k.tenant == name and k.is_offline == kind for k in running),
            )
            for name in {each.tenant for each in (*running, *waiting)}
        }
        for kind in (False, True)
    )
    return View(
        list(running),
        lines_of(waiting, False),
        sequences,
        [pool],
        max_rows,
        max_sequences,
        above,
        Offline(lines_of(waiting, True), below),
    )


def lines_of(waiting: Sequence[FakeSequence], is_offline: bool) -> dict[str, list[Known]]:
    lines: dict[str, list[Known]] = {}
    for known in waiting:
        if known.is_offline == is_offline:
            lines.setdefault(known.tenant, []).append(known)
    return lines
