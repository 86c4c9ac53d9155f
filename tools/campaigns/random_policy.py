"""Any legal plan: what no policy of ours would do, and what must give the same tokens."""

from __future__ import annotations

import random

from blockllm.engine.work import Known, Plan, View, Work


class RandomPolicy:
    """Preempts, admits, splits rows and lets them pause anywhere, by a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        if sum(view.lanes) >= view.threads:
            return Plan((), (), ())
        chance = self._random.random
        lost = [known for known in view.running if chance() < 0.03]
        for known in lost:
            view.pages[known.pool].release(known)
        work: list[Work] = []
        for known in view.running:
            if known not in lost:
                work += self._run(known, view)
        if not work and not lost:  # something has to give way, or nothing would ever go on
            stuck = [k for k in view.running if k.num_new or k.paused]
            if stuck and self._random.random() < 0.5:
                lost = [stuck[-1]]
        admitted = [] if lost else self._admit(view)
        return self._in_lanes(
            Plan(
                tuple(known.number for known in lost),
                tuple(each.sequence for each in admitted),
                (*work, *admitted),
            ),
            view,
        )

    def _in_lanes(self, plan: Plan, view: View) -> Plan:
        """Each sequence in a free lane, which get threads as long as there are some."""
        if len(view.lanes) == 1:
            return plan
        left, shares = view.threads - sum(view.lanes), [0] * len(view.lanes)
        for lane, threads in enumerate(view.lanes):
            if threads == 0 and left > 0:
                shares[lane] = self._random.randint(1, left)
                left -= shares[lane]
        free = [lane for lane, share in enumerate(shares) if share]
        chosen = {each.sequence: self._random.choice(free) for each in plan.work}
        work = tuple(each._replace(lane=chosen[each.sequence]) for each in plan.work)
        return plan._replace(work=work, shares=tuple(shares))

    def _run(self, known: Known, view: View) -> list[Work]:
        chosen, pages, limit = [], view.pages[known.pool], known.num_stops
        for stop, start, rows in known.paused:
            if self._random.random() < 0.7:
                chosen.append(self._work(known, start, rows, stop, limit))
            limit = stop
        new = known.num_new
        if new and self._random.random() < 0.7:
            work = self._work(known, known.num_begun, new, 0, limit)
            lacking = pages.lacking(known, work.rows)
            if lacking <= pages.available:
                pages.take(lacking)
                chosen.append(work)
        return chosen

    def _work(self, known: Known, start: int, rows: int, stop: int, limit: int) -> Work:
        whole = self._random.random() < 0.5
        count = rows if whole else self._random.randint(1, rows)
        last = limit - 1 if whole else self._random.randint(stop, limit - 1)
        return Work(known.number, start, count, stop, last)

    def _admit(self, view: View) -> list[Work]:
        admitted: list[Work] = []
        slots = view.max_sequences - len(view.running)
        lines = (*view.waiting.values(), *view.offline.waiting.values())
        waiting = [known for line in lines for known in line]
        self._random.shuffle(waiting)
        for known in waiting:
            if self._random.random() < 0.3 or len(admitted) >= slots:
                continue
            pages = view.pages[known.pool]
            admission = pages.admission(known)
            if admission.blocked or admission.pages > pages.available:
                continue
            rows, stops = admission.num_new, known.num_stops
            work = self._work(known, admission.first_row, rows, 0, stops)
            pages.admit(known, work.rows)
            admitted.append(work)
        return admitted
