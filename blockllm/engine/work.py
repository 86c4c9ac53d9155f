"""What a policy decides, and what it may see: decisions are data, and nothing here has tensors.

A policy is a pure function from a view to a plan (law 7); `scheduler.py` executes the plan. Rows
of a sequence go through their stops in order and never pass rows before them; how many go at once,
how far, and beside which others, is the policy's to decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol


class PausedRows(NamedTuple):
    """Rows `start:start + rows` of a sequence wait in front of a stop behind the first one."""

    stop: int
    start: int
    rows: int


class Work(NamedTuple):
    """Rows `start:start + rows` of one sequence through the stops `first_stop..last_stop`, both
    included."""

    sequence: int
    start: int
    rows: int
    first_stop: int
    last_stop: int
    lane: int = 0


class Plan(NamedTuple):
    """Sequences that lose their pages, waiting ones that get some, in this order, and the rows of
    the next turn, one batch for each lane that has some."""

    preempt: tuple[int, ...]
    admit: tuple[int, ...]
    work: tuple[Work, ...]
    shares: tuple[int, ...] = ()  # threads of each lane's batch; empty: all, where one lane has all


class Known(Protocol):
    """A sequence as policies see it. Computed rows have passed all stops."""

    @property
    def number(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def is_offline(self) -> bool:
        """Whether it only takes what other sequences leave."""
        ...

    @property
    def pool(self) -> int: ...
    @property
    def most_pages(self) -> int:
        """Pages that it may come to hold."""
        ...

    @property
    def num_stops(self) -> int: ...
    @property
    def num_computed(self) -> int: ...
    @property
    def paused(self) -> Sequence[PausedRows]:
        """Rows behind the computed ones that have begun, deepest first."""
        ...

    @property
    def num_begun(self) -> int:
        """Rows that are computed or have begun."""
        ...

    @property
    def num_new(self) -> int:
        """Rows that have not begun."""
        ...

    @property
    def last_turn(self) -> int:
        """The number of the last turn that had rows of the sequence's model; 0: none had."""
        ...

    @property
    def own_turn(self) -> int:
        """The number of the last turn that had rows of the sequence itself; 0: none had."""
        ...


class KnownTenant(Protocol):
    """A tenant as policies see it. A quota of 0 is none."""

    @property
    def counter(self) -> float:
        """Tokens that it was served, by its weight: see `sequence/tenants.py`."""
        ...

    @property
    def weight(self) -> float: ...
    @property
    def max_rows(self) -> int:
        """Quota of rows of one batch, and of running sequences."""
        ...

    @property
    def max_pages(self) -> int:
        """Quota of pages that its running sequences may come to hold."""
        ...

    @property
    def num_running(self) -> int:
        """Its running sequences, those in lanes too."""
        ...

    @property
    def num_pages(self) -> int:
        """Pages that they may come to hold."""
        ...


class Admission(NamedTuple):
    """What it takes to admit a waiting sequence."""

    first_row: int  # those before it are on known pages
    num_new: int  # rows from there on
    pages: int  # for all its tokens and the next one, known pages that it adopts included
    blocked: bool  # another sequence computes its next page right now: wait and share it


class Pages(Protocol):
    """One KV cache, and what a plan has taken of it so far."""

    @property
    def available(self) -> int: ...
    @property
    def reserve(self) -> int:
        """Pages that stay free for the growth of running sequences."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether no sequence holds pages."""
        ...

    def lacking(self, known: Known, rows: int) -> int:
        """Pages that a running sequence lacks to begin so many new rows."""
        ...

    def held(self, known: Known) -> int:
        """Pages that are free once the sequence is preempted."""
        ...

    def admission(self, known: Known) -> Admission:
        """What it takes to admit a waiting sequence now."""
        ...

    def take(self, count: int) -> None:
        """The plan takes so many pages for a running sequence."""
        ...

    def release(self, known: Known) -> None:
        """The plan preempts the sequence."""
        ...

    def admit(self, known: Known, rows: int) -> None:
        """The plan admits the sequence and begins so many rows of it."""
        ...


Lines = Mapping[str, Sequence[Known]]


class Offline(NamedTuple):
    """What a policy sees of offline sequences that wait: as the same fields of `View`."""

    waiting: Lines = MappingProxyType({})
    tenants: Mapping[str, KnownTenant] = MappingProxyType({})


class View(NamedTuple):
    """All that a policy sees. It must not look at all requests that wait."""

    running: Sequence[Known]  # by age; without those whose rows a lane computes right now
    # by tenant, each in order of arrival and none empty; the tenant admitted longest ago is first
    waiting: Lines
    sequences: Mapping[int, Known]  # all of them, by number
    pages: Sequence[Pages]  # by pool
    max_rows: int  # of this turn; rows that pass a part of their stops count for that part
    max_sequences: int  # that run at once, those in lanes not counted
    tenants: Mapping[str, KnownTenant]  # of all that run and wait
    offline: Offline = Offline()
    lanes: tuple[int, ...] = (0,)  # threads that each computes on; 0: it is free
    threads: int = 1  # of all lanes together


class Policy(Protocol):
    """Decides the rows of the next turn."""

    def plan(self, view: View) -> Plan:
        """Pure but for the view's `pages`, which count along. An empty plan: nothing can go on."""
        ...


def full_work(known: Known, rows: int, start: int | None = None) -> Work:
    """New rows of a sequence through all of its stops."""
    first = known.num_begun if start is None else start
    return Work(known.number, first, rows, 0, known.num_stops - 1)


def check(plan: Plan, view: View) -> None:
    """Raise AssertionError unless the scheduler may execute the plan. `view`: a fresh one."""
    running = {known.number: known for known in view.running}
    assert len(set(plan.preempt)) == len(plan.preempt), "a sequence is preempted twice"
    for number in plan.preempt:
        known = running.pop(number)
        view.pages[known.pool].release(known)
    lines = (*view.waiting.values(), *view.offline.waiting.values())
    waiting = {known.number: known for line in lines for known in line}
    admitted = {number: waiting[number] for number in plan.admit}
    assert len(admitted) == len(plan.admit), "a sequence is admitted twice"
    assert not (admitted and plan.preempt), "what is preempted would be first in line"
    assert len(running) + len(admitted) <= view.max_sequences
    _check_lanes(plan, view)
    by_sequence: dict[int, list[Work]] = {}
    for work in plan.work:
        by_sequence.setdefault(work.sequence, []).append(work)
    for number, own in by_sequence.items():
        if number in running:
            _check_running(running[number], own, view.pages[running[number].pool])
    for number, known in admitted.items():
        (work,) = by_sequence[number]
        pages = view.pages[known.pool]
        admission = pages.admission(known)
        assert not admission.blocked and (work.start, work.first_stop) == (admission.first_row, 0)
        assert 0 < work.rows <= admission.num_new and 0 <= work.last_stop < known.num_stops
        assert admission.pages <= pages.available
        pages.admit(known, work.rows)
    assert set(by_sequence) <= {*running, *admitted}, "rows of a sequence without pages"


def _check_lanes(plan: Plan, view: View) -> None:
    used = {work.lane for work in plan.work}
    assert all(view.lanes[lane] == 0 for lane in used), "a batch for a lane that computes one"
    assert len({(work.sequence, work.lane) for work in plan.work}) == len(
        {work.sequence for work in plan.work}
    ), "a sequence in two lanes"
    if plan.shares:
        assert all(plan.shares[lane] > 0 for lane in used), "a lane without threads"
        taken = sum(view.lanes) + sum(plan.shares[lane] for lane in used)
        assert taken <= view.threads, "more threads than there are"
    else:
        assert len(view.lanes) == 1 or not used, "lanes have no shares"


def _check_running(known: Known, own: list[Work], pages: Pages) -> None:
    waits = {(rows.stop, rows.start): rows.rows for rows in known.paused}
    waits[0, known.num_begun] = known.num_new
    limits = {known.num_computed: known.num_stops}  # how far the rows before a row have come
    limits |= {rows.start + rows.rows: rows.stop for rows in known.paused}
    assert len({work.first_stop for work in own}) == len(own), "rows at one stop go twice"
    for work in own:
        assert 0 < work.rows <= waits[work.first_stop, work.start], "rows that do not wait there"
        assert work.first_stop <= work.last_stop < limits[work.start], "rows pass rows before them"
    new = sum(work.rows for work in own if work.first_stop == 0)
    lacking = pages.lacking(known, new)
    assert lacking <= pages.available, "more pages than there are"
    pages.take(lacking)
