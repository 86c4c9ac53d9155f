"""Offline sequences take what online ones leave: rows of the turn, pages, slots.

Wraps a policy and asks it twice. First about online sequences alone, to which the pages and slots
of offline ones count as free: where they are needed, the youngest offline sequences are preempted.
Then about offline sequences, with the rows that are left of the turn. None is admitted while an
online one waits for pages or a slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockllm.engine.policies.paused import rows_of
from blockllm.engine.policies.tenants import FairTenants, has_pages
from blockllm.engine.work import Admission, Known, Offline, Pages, Plan, Policy, View


class Slack:
    """The plan of another policy for online sequences, and what it leaves for offline ones."""

    def __init__(self, inner: Policy) -> None:
        """`inner`: decides for both; its plans have no preemptions beside admissions."""
        self._inner = inner

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        offline = [known for known in view.running if known.is_offline]
        if not offline and not view.offline.waiting:
            return self._inner.plan(view)
        online = [known for known in view.running if not known.is_offline]
        in_use = {known.pool for known in online}
        lent = [
            LentPages(
                pages,
                [known for known in offline if known.pool == pool],
                is_idle=pool not in in_use and not any(view.lanes),
            )
            for pool, pages in enumerate(view.pages)
        ]
        upper = view._replace(running=online, pages=lent, offline=Offline())
        plan = self._inner.plan(upper)
        victims = _victims(view, offline, plan, lent)
        if victims:
            plan = _without_admissions(plan, victims)
        for pages in lent:
            pages.keep()
        kept = [known for known in offline if known.number not in victims]
        return _joined(plan, self._plan_offline(view, upper, kept, plan))

    def _plan_offline(self, view: View, upper: View, kept: Sequence[Known], plan: Plan) -> Plan:
        """What is left of the turn. `upper`: what the plan of online sequences was made of."""
        rows = view.max_rows - rows_of(plan.work, view.sequences)
        if rows <= 0:
            return Plan((), (), ())
        may_admit = not plan.preempt and not _lacks_room(upper, plan)
        lower = view._replace(
            running=kept,
            waiting=view.offline.waiting if may_admit else {},
            tenants=view.offline.tenants,
            offline=Offline(),
            max_rows=rows,
            max_sequences=view.max_sequences - len(upper.running) - len(plan.admit),
        )
        return self._inner.plan(lower)


class LentPages:
    """Pages as online sequences see them: those of offline ones count as available."""

    def __init__(self, pages: Pages, lenders: Sequence[Known], is_idle: bool) -> None:
        """`lenders`: offline sequences; `is_idle`: no other has pages."""
        self._pages, self.is_idle = pages, is_idle
        self._lent = sum(map(pages.held, lenders))
        self._kept = 0
        self.shortage = 0  # pages that offline sequences have to give back for the plan

    @property
    def available(self) -> int:
        return self._pages.available + self._lent

    @property
    def reserve(self) -> int:
        return self._pages.reserve

    def lacking(self, known: Known, rows: int) -> int:
        return self._pages.lacking(known, rows)

    def held(self, known: Known) -> int:
        return self._pages.held(known)

    def admission(self, known: Known) -> Admission:
        return self._pages.admission(known)

    def take(self, count: int) -> None:
        self._pages.take(count)
        self._need(0)

    def release(self, known: Known) -> None:
        self._pages.release(known)

    def admit(self, known: Known, rows: int) -> None:
        needed = self._pages.admission(known).pages
        self._need(needed)
        before = self._pages.available
        self._pages.admit(known, rows)
        self._kept += needed - (before - self._pages.available)

    def keep(self) -> None:
        """Pages that admitted sequences need later are not for offline ones."""
        self._pages.take(min(self._kept, max(0, self._pages.available)))

    def _need(self, count: int) -> None:
        self.shortage = max(self.shortage, count - self._pages.available)


def _victims(
    view: View, offline: Sequence[Known], plan: Plan, lent: Sequence[LentPages]
) -> tuple[int, ...]:
    """Offline sequences whose slots and pages the plan needs, youngest first; their pages are
    released."""
    running = len(view.running) - len(plan.preempt) + len(plan.admit)
    found = []
    for known in reversed(offline):
        pages = view.pages[known.pool]
        if running > view.max_sequences or lent[known.pool].shortage > 0:
            before = pages.available
            pages.release(known)
            lent[known.pool].shortage -= pages.available - before
            found.append(known.number)
            running -= 1
    return tuple(found)


def _without_admissions(plan: Plan, victims: tuple[int, ...]) -> Plan:
    """What is preempted would be first in line, so the room that it leaves is given away in the
    next turn."""
    work = tuple(each for each in plan.work if each.sequence not in plan.admit)
    return Plan((*victims, *plan.preempt), (), work)


def _lacks_room(upper: View, plan: Plan) -> bool:
    """Whether an online sequence that is first in line waits for pages or a slot."""
    if not upper.waiting:
        return False
    is_full = len(upper.running) + len(plan.admit) >= upper.max_sequences
    for known in FairTenants(upper).in_turn():
        if known.number in plan.admit:
            continue
        pages = upper.pages[known.pool]
        admission = pages.admission(known)
        return not admission.blocked and (is_full or not has_pages(admission, pages))
    return False


def _joined(online: Plan, offline: Plan) -> Plan:
    """Both at once. An offline sequence is not preempted for another one beside an admission."""
    if offline.preempt and online.admit:
        return online
    return Plan(
        (*online.preempt, *offline.preempt),
        (*online.admit, *offline.admit),
        (*online.work, *offline.work),
    )
