"""Shares of tenants: rows of prompts, slots, pages and places in line.

Each is max-min fair: what one tenant does not ask for goes to the others, so a tenant that is alone
gets everything. Pure functions; the cost depends on tenants that have work in the turn, and on the
first `LOOK_AHEAD` that wait.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice

from blockllm.engine.work import Known, View

# How many waiting requests, or their tenants, one turn looks at.
LOOK_AHEAD = 64


def in_turn(view: View) -> Iterator[Known]:
    """Waiting sequences in order of admission: of the tenant with the fewest running ones first,
    those to be admitted before counted; of equals, of the one whose turn is longest ago."""
    if len(view.waiting) == 1:
        yield from next(iter(view.waiting.values()))
        return
    running = Counter(known.tenant for known in view.running)
    lines = [
        (running[tenant], place, iter(line))
        for place, (tenant, line) in enumerate(islice(view.waiting.items(), LOOK_AHEAD))
    ]
    heapq.heapify(lines)  # places differ, so lines are never compared
    while lines:
        count, place, line = lines[0]
        known = next(line, None)
        if known is None:
            heapq.heappop(lines)
            continue
        heapq.heapreplace(lines, (count + 1, place, line))
        yield known


def newcomers(view: View) -> list[Known]:
    """The first sequence in line of each tenant that has none running."""
    if not view.waiting:
        return []
    running = {known.tenant for known in view.running}
    ahead = islice(view.waiting.items(), LOOK_AHEAD)
    return [line[0] for tenant, line in ahead if tenant not in running]


def give_way(view: View, ahead: Sequence[Known]) -> Known | None:
    """The sequence to preempt for a newcomer that nothing was left for: the youngest of the tenant
    with the most, if that has another one."""
    for known in ahead:
        pages = view.pages[known.pool]
        admission = pages.admission(known)
        if admission.blocked:
            continue
        lacks_slot = len(view.running) >= view.max_sequences
        others = [o for o in view.running if lacks_slot or o.pool == known.pool]
        if lacks_slot or admission.pages > pages.available - pages.reserve:
            tenant, count = max(
                Counter(other.tenant for other in others).items(),
                key=lambda item: item[1],
                default=("", 0),
            )
            if count > 1:
                return next(o for o in reversed(others) if o.tenant == tenant)
    return None


def split_prompts(
    prompts: Iterable[Known], room: int, ahead: Sequence[Known] = ()
) -> dict[int, int]:
    """New rows of each sequence, by number: those of a tenant in order of age, tenants by equal
    shares. `ahead`: newcomers, for whom their tenants' shares are left free."""
    by_tenant: dict[str, list[Known]] = {}
    for known in prompts:
        by_tenant.setdefault(known.tenant, []).append(known)
    asked = {tenant: sum(k.num_new for k in own) for tenant, own in by_tenant.items()}
    asked |= {known.tenant: known.num_new for known in ahead}
    shares = _equal_shares(asked, room)
    rows = {}
    for tenant, own in by_tenant.items():
        left = shares[tenant]
        for known in own:
            rows[known.number] = min(known.num_new, left)
            left -= rows[known.number]
    return rows


def _equal_shares(asked: Mapping[str, int], room: int) -> dict[str, int]:
    """No tenant gets more than it asks for, nor more than one that asks for more."""
    shares = {}
    left = len(asked)
    for tenant in sorted(asked, key=lambda tenant: asked[tenant]):
        shares[tenant] = min(asked[tenant], -(-room // left))
        room -= shares[tenant]
        left -= 1
    return shares
