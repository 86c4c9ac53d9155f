"""Rows that only need their next token first, then prompts, cut to the budget.

Tenants share it by their counters, and a tenant's prompts come in order of arrival. When pages run
out, the youngest sequence is preempted. Waiting requests are admitted in turn while rows, slots and
pages last (chunked prefill: Sarathi-Serve, arXiv 2403.02310).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from blockllm.engine.policies.paused import resume, rows_of
from blockllm.engine.policies.tenants import LOOK_AHEAD, FairTenants, has_pages
from blockllm.engine.work import Admission, Known, Pages, Plan, View, Work, full_work


class Chunked:
    """Every row that begins goes through all of its stops. Rows that wait go first; a sequence that
    has some begins no others."""

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        paused = {known.number: known for known in view.running if known.paused}
        resumed = [work for known in paused.values() for work in resume(known)]
        max_rows = max(0, view.max_rows - rows_of(resumed, paused))
        fair = FairTenants(view)
        rows = dict.fromkeys(paused, 0)
        rows |= _split_rows([k for k in view.running if not k.paused], max_rows, fair)
        work, preempted = plan_pools(view, rows)
        left = max_rows - sum(each.rows for each in work)
        work = [*(each for each in resumed if each.sequence not in preempted), *work]
        if preempted:
            return Plan(tuple(preempted), (), tuple(work))
        admitted = admit(view, left, fair)
        if view.waiting and not admitted:
            victim = fair.give_way()
            if victim is not None:
                kept = (each for each in work if each.sequence != victim.number)
                return Plan((victim.number,), (), tuple(kept))
        return Plan((), tuple(each.sequence for each in admitted), (*work, *admitted))


def plan_pools(view: View, rows: Mapping[int, int]) -> RunningPlan:
    """New rows of running sequences as far as pages last; `rows`: how many each may begin."""
    work: list[Work] = []
    preempted: list[int] = []
    for pool, pages in enumerate(view.pages):
        own = [known for known in view.running if known.pool == pool]
        kept, lost = plan_running(own, rows, pages)
        work += kept
        preempted += lost
    return RunningPlan(work, preempted)


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


def _split_rows(running: Sequence[Known], max_rows: int, fair: FairTenants) -> dict[int, int]:
    """Single rows first, then chunks of prompts, until the budget is used."""
    rows, prompts = {}, []
    for known in running:
        if known.num_new == 1:
            rows[known.number] = min(1, max_rows)
            max_rows -= rows[known.number]
        else:
            prompts.append(known)
    return rows | fair.split(prompts, max_rows)


def admit(view: View, rows: int, fair: FairTenants) -> list[Work]:
    """Rows of waiting sequences that are admitted, in turn; all of their stops."""
    admitted: list[Work] = []
    slots = view.max_sequences - len(view.running)
    for known in islice(fair.in_turn(), LOOK_AHEAD) if view.waiting else ():
        if rows <= 0 or len(admitted) >= slots:
            break
        pages = view.pages[known.pool]
        admission = pages.admission(known)
        count = admit_rows(admission, min(rows, fair.rows_to_admit(known)), pages)
        if count:
            pages.admit(known, count)
            fair.admit(known, count)
            admitted.append(full_work(known, count, admission.first_row))
            rows -= count
        elif not admission.blocked:
            break  # no room: requests behind must not overtake it
    return admitted


def admit_rows(admission: Admission, max_rows: int, pages: Pages) -> int:
    """Rows to start a sequence with, 0 to let it wait."""
    if admission.blocked or max_rows <= 0 or not has_pages(admission, pages):
        return 0
    return min(admission.num_new, max_rows)
