"""Rows that only need their next token first, then prompts in order of arrival, cut to the budget.

When pages run out, the youngest sequence is preempted. Waiting requests are admitted in order of
arrival while rows, slots and pages last (chunked prefill: Sarathi-Serve, arXiv 2403.02310).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from blockllm.engine.work import Admission, Known, Pages, Plan, View, Work, full_work

# How many waiting requests one turn looks at; keeps a turn's cost independent of the queue.
LOOK_AHEAD = 64


class Chunked:
    """Every row that begins goes through all of its stops."""

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        preempted, work = [], []
        rows = view.max_rows
        for pool, pages in enumerate(view.pages):
            own = [known for known in view.running if known.pool == pool]
            kept, lost = plan_running(own, split_rows(own, rows), pages)
            preempted += lost
            work += kept
            rows -= sum(each.rows for each in kept)
        if preempted:
            return Plan(tuple(preempted), (), tuple(work))
        admitted = admit(view, rows, view.max_sequences - len(view.running))
        return Plan((), tuple(each.sequence for each in admitted), (*work, *admitted))


class RunningPlan(NamedTuple):
    """Rows for running sequences, and the sequences to preempt to make room for them."""

    work: list[Work]
    preempted: list[int]


def plan_running(running: Sequence[Known], rows: Mapping[int, int], pages: Pages) -> RunningPlan:
    """New rows of sequences of one KV pool, oldest first, as far as pages last; `rows`: how many
    each may begin."""
    alive = list(running)
    work: list[Work] = []
    preempted: list[int] = []
    position = 0
    while position < len(alive):
        known = alive[position]
        granted = rows[known.number]
        lacking = pages.lacking(known, granted) if granted else 0
        if lacking <= pages.available:
            if granted:
                pages.take(lacking)
                work.append(full_work(known, granted))
            position += 1
            continue
        victim = alive.pop()  # the youngest; possibly the sequence itself
        pages.release(victim)
        preempted.append(victim.number)
    return RunningPlan(work, preempted)


def split_rows(running: Iterable[Known], max_rows: int) -> dict[int, int]:
    """Single rows first, then chunks of prompts in order, until the budget is used."""
    ordered = sorted(running, key=lambda known: known.num_new != 1)  # stable: age is kept
    rows = {}
    for known in ordered:
        granted = min(known.num_new, max_rows)
        rows[known.number] = granted
        max_rows -= granted
    return rows


def admit(view: View, rows: int, slots: int) -> list[Work]:
    """Rows of waiting sequences that are admitted, in order; all of their stops."""
    admitted: list[Work] = []
    for known in islice(view.waiting, LOOK_AHEAD):
        if rows <= 0 or len(admitted) >= slots:
            break
        pages = view.pages[known.pool]
        admission = pages.admission(known)
        count = admit_rows(admission, rows, pages)
        if count:
            pages.admit(known, count)
            admitted.append(full_work(known, count, admission.first_row))
            rows -= count
        elif not admission.blocked:
            break  # no room: requests behind must not overtake it
    return admitted


def admit_rows(admission: Admission, max_rows: int, pages: Pages) -> int:
    """Rows to start a sequence with, 0 to let it wait. An idle pool admits whatever fits at all;
    else pages stay free for the growth of running sequences."""
    if admission.blocked or max_rows <= 0:
        return 0
    if admission.pages > pages.available - (0 if pages.is_idle else pages.reserve):
        return 0
    return min(admission.num_new, max_rows)
