"""Every block has its own batch limit: rows over it wait in front of the block (BlockLLM, arXiv
2404.18322).

Wraps a policy and cuts its plan, which resumes the rows that wait. A hop at a span takes at most
as many rows as the span's limit says. Rows that find a hop full end their work in front of it and
go before others in the next turn: of the rows that wait and of those that have not begun, each in
order of the turn that had rows of their sequence last. So every row gets on, and rows of a sequence
stay in order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from blockllm.engine.sequence.place import Place
from blockllm.engine.sequence.sequence import RouteState
from blockllm.engine.work import Known, Plan, Policy, View, Work

_UNLIMITED = 1 << 30


class StopLimit(NamedTuple):
    """What a stop's hop takes."""

    place: Place  # a turn has one hop at each
    rows: int  # of all models, at most
    is_behind_attention: bool  # only rows whose next token is wanted come here


def stop_limits(
    states: Mapping[str, RouteState], rows: Mapping[int, int]
) -> dict[str, tuple[StopLimit, ...]]:
    """The stops of each model. `rows`: limits by span; a span that is absent has none."""
    found = {}
    for model, state in states.items():
        behind = [False, *(stop.stop.ends_attention for stop in state.stops)]
        found[model] = tuple(
            StopLimit(stop.place, rows.get(stop.place.span, _UNLIMITED), is_behind)
            for stop, is_behind in zip(state.stops, behind, strict=False)
        )
    return found


class BlockLimits:
    """The plan of another policy, cut where hops would have more rows than their limits."""

    def __init__(self, inner: Policy, stops: Mapping[str, Sequence[StopLimit]]) -> None:
        """`stops`: of every model, in order."""
        self._inner, self._stops = inner, stops

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        plan = self._inner.plan(view)
        taken: dict[Place, int] = {}
        work = []
        for each in sorted(plan.work, key=_turn_of(view)):
            kept = self._cut(each, view.sequences[each.sequence], taken)
            if kept is not None:
                work.append(kept)
        begun = {each.sequence for each in work}
        admitted = tuple(number for number in plan.admit if number in begun)
        return Plan(plan.preempt, admitted, tuple(work))

    def _cut(self, work: Work, known: Known, taken: dict[Place, int]) -> Work | None:
        """The work as far as hops have room; counts what it takes of them."""
        stops = self._stops[known.model][work.first_stop : work.last_stop + 1]
        most = min([work.rows, *(s.rows for s in stops if not s.is_behind_attention)])
        if not stops[0].is_behind_attention:
            most = min(most, stops[0].rows - taken.get(stops[0].place, 0))
        if most <= 0:
            return None
        is_wanted = work.start + most == known.num_begun + known.num_new
        passed = 0
        for stop in stops:
            count = int(is_wanted) if stop.is_behind_attention else most
            before = taken.get(stop.place, 0)
            if count and before + count > stop.rows:
                break
            taken[stop.place] = before + count
            passed += 1
        if not passed:
            return None
        return work._replace(rows=most, last_stop=work.first_stop + passed - 1)


def _turn_of(view: View) -> Callable[[Work], tuple[bool, int, bool]]:
    """Rows that wait first, and single rows before those of prompts that came as long ago."""

    def key(work: Work) -> tuple[bool, int, bool]:
        own_turn = view.sequences[work.sequence].own_turn
        return work.first_stop == 0, own_turn, work.rows > 1

    return key
