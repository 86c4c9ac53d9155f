"""Tenants share rows of prompts, slots, pages and the line by what they were served before.

Every tenant has a counter of tokens served by its weight (virtual token counter, arXiv
2401.00588). The one with the least counter is admitted first, and rows of prompts go where counters
are least, until they are level. What one tenant does not ask for goes to the others, so a tenant
that is alone gets everything but what a quota keeps back. The cost depends on tenants that have
work in the turn, and on the first `LOOK_AHEAD` that wait.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

from blockllm.engine.work import Admission, Known, KnownTenant, Pages, View

# How many waiting requests, or their tenants, one turn looks at.
LOOK_AHEAD = 64
_UNLIMITED = 1 << 30


class NextInLine(NamedTuple):
    """The first waiting sequence of a tenant, which could be admitted now, and its new rows."""

    known: Known
    rows: int


class FairTenants:
    """What the tenants of one view get; counts what the plan has given them."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._admitted = Counter[str]()  # sequences that the plan admits
        self._pages = Counter[str]()  # that these may come to hold

    @cached_property
    def _rows(self) -> Counter[str]:
        """Rows that the plan gives: at first one for each sequence that decodes, and those that
        wait in front of stops."""
        rows = Counter[str]()
        for known in self._view.running:
            rows[known.tenant] += sum(each.rows for each in known.paused) or known.num_new == 1
        return rows

    @cached_property
    def _lines(self) -> list[tuple[float, float, int, str]]:
        """Lines that this turn looks at, by their tenants' counters; of equals, by how many of a
        tenant run for its weight; then by how long ago the line was admitted from."""
        tenants = self._view.tenants
        looked_at = enumerate(islice(self._view.waiting, LOOK_AHEAD))
        return sorted(
            (tenants[name].counter, tenants[name].num_running / tenants[name].weight, place, name)
            for place, name in looked_at
        )

    def admit(self, known: Known, rows: int) -> None:
        """The plan admits a sequence with so many rows."""
        self._admitted[known.tenant] += 1
        self._rows[known.tenant] += rows
        self._pages[known.tenant] += known.most_pages

    def rows_left(self, name: str) -> int:
        """Rows that its quota leaves to a tenant in this turn."""
        quota = self._view.tenants[name].max_rows
        return max(0, quota - self._rows[name]) if quota else _UNLIMITED

    def rows_to_admit(self, known: Known) -> int:
        """Rows that its tenant's quotas let a waiting sequence begin with; 0: it has to wait. A
        tenant runs no more sequences than it has rows, so that each gets on in every turn."""
        tenant = self._view.tenants[known.tenant]
        running = tenant.num_running + self._admitted[known.tenant]
        if tenant.max_rows and running >= tenant.max_rows:
            return 0
        pages = tenant.num_pages + self._pages[known.tenant] + known.most_pages
        if tenant.max_pages and pages > tenant.max_pages:
            return 0
        return self.rows_left(known.tenant)

    def in_turn(self) -> Iterator[Known]:
        """Waiting sequences in order of admission: always of the tenant with the least counter, to
        which the prompts that went before in this turn are added. None of a tenant whose quotas
        let the first of its line wait."""
        lines = [
            (counter, load, place, iter(self._view.waiting[name]))
            for counter, load, place, name in self._lines
        ]
        while lines:  # a heap, since it is sorted; places differ, so lines are never compared
            counter, load, place, line = lines[0]
            known = next(line, None)
            if known is None or not self.rows_to_admit(known):
                heapq.heappop(lines)
                continue
            weight = self._view.tenants[known.tenant].weight
            behind = counter + known.num_new / weight, load + 1 / weight, place, line
            heapq.heapreplace(lines, behind)
            yield known

    def next_in_lines(self) -> list[NextInLine]:
        """The first sequence of each line, as far as slots, pages and quotas last. None behind one
        that lacks pages, since none is admitted before it."""
        slots = self._view.max_sequences - len(self._view.running)
        found: list[NextInLine] = []
        taken = Counter[int]()
        for *_, name in self._lines if slots > 0 else ():
            known = self._view.waiting[name][0]
            if len(found) == slots:
                break
            if not self.rows_to_admit(known):
                continue
            pages = self._view.pages[known.pool]
            admission = pages.admission(known)
            if admission.blocked:
                continue
            if not has_pages(admission, pages, taken[known.pool]):
                break
            taken[known.pool] += admission.pages
            found.append(NextInLine(known, admission.num_new))
        return found

    def split(self, prompts: Iterable[Known], room: int) -> dict[int, int]:
        """New rows of running sequences, by number: tenants by their counters, those of a tenant
        in order of age. Leaves free what sequences that can be admitted now would get."""
        by_tenant: dict[str, list[Known]] = {}
        for known in prompts:
            by_tenant.setdefault(known.tenant, []).append(known)
        if not by_tenant:
            return {}
        asked = {name: sum(known.num_new for known in own) for name, own in by_tenant.items()}
        for first in self.next_in_lines():
            asked[first.known.tenant] = asked.get(first.known.tenant, 0) + first.rows
        asked = {name: min(rows, self.rows_left(name)) for name, rows in asked.items()}
        shares = level_shares(asked, self._view.tenants, room)
        rows = {}
        for name, own in by_tenant.items():
            left = shares[name]
            self._rows[name] += min(left, sum(known.num_new for known in own))
            for known in own:
                rows[known.number] = min(known.num_new, left)
                left -= rows[known.number]
        return rows

    def give_way(self) -> Known | None:
        """The sequence to preempt for the first in turn, if slots or pages lack for it: the
        youngest of the tenant that has most of them for its weight. Only of one that was served no
        less than the tenant in turn, keeps another sequence, and has more than that tenant would
        have: so the two never take from each other in turns."""
        view = self._view
        for known in islice(self.in_turn(), LOOK_AHEAD):
            pages = view.pages[known.pool]
            admission = pages.admission(known)
            if admission.blocked:
                continue
            if len(view.running) >= view.max_sequences:
                return self._youngest_of_most(known, view.running, lambda known: 1)
            if has_pages(admission, pages):
                return None
            others = [other for other in view.running if other.pool == known.pool]
            return self._youngest_of_most(known, others, lambda known: known.most_pages)
        return None

    def _youngest_of_most(
        self, asks: Known, others: Sequence[Known], size_of: Callable[[Known], int]
    ) -> Known | None:
        tenants, sizes, counts = self._view.tenants, Counter[str](), Counter[str]()
        for known in others:
            sizes[known.tenant] += size_of(known)
            counts[known.tenant] += 1
        own = tenants[asks.tenant]
        wanted = (sizes[asks.tenant] + size_of(asks)) / own.weight
        shares = {
            name: sizes[name] / tenants[name].weight
            for name, count in counts.items()
            if count > 1 and tenants[name].counter >= own.counter
        }
        most = max(shares, key=lambda name: shares[name], default="")
        if most not in shares or shares[most] <= wanted:
            return None
        return next(known for known in reversed(others) if known.tenant == most)


def has_pages(admission: Admission, pages: Pages, taken: int = 0) -> bool:
    """Whether a sequence can be admitted, `taken` pages apart. An idle pool admits whatever fits at
    all; else pages stay free for the growth of running sequences."""
    return admission.pages <= pages.available - taken - (0 if pages.is_idle else pages.reserve)


def level_shares(
    asked: Mapping[str, int], tenants: Mapping[str, KnownTenant], room: int
) -> dict[str, int]:
    """Rows by tenant, none more than it asks for, so that counters are as level as they can be once
    these rows are computed. All of the room is used, if so much is asked for."""
    if sum(asked.values()) <= room:
        return dict(asked)
    level, shares, left = _level(asked, tenants, room), {}, room
    for name, rows in asked.items():
        due = max(0.0, level - tenants[name].counter) * tenants[name].weight
        shares[name] = min(rows, int(due), left)
        left -= shares[name]
    while left > 0:  # what rounding down has left
        for name in sorted(asked, key=lambda name: tenants[name].counter):
            more = min(1, left, asked[name] - shares[name])
            shares[name] += more
            left -= more
    return shares


def _level(asked: Mapping[str, int], tenants: Mapping[str, KnownTenant], room: int) -> float:
    """The counter that tenants come to which get less than they ask for. Every one begins to get
    rows where the level passes its counter, and has all of them at the counter that it would have
    then; between, it gets as many as its weight for every one of the level."""
    bends = []
    for name, rows in asked.items():
        tenant = tenants[name]
        bends.append((tenant.counter, tenant.weight))
        bends.append((tenant.counter + rows / tenant.weight, -tenant.weight))
    bends.sort()
    level, slope, left = bends[0][0], 0.0, float(room)
    for bend, change in bends:
        if slope > 0 and slope * (bend - level) >= left:
            return level + left / slope
        left -= slope * (bend - level)
        level, slope = bend, slope + change
    return level
