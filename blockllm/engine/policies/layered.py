"""Prompts go layer by layer beside decoding: Layered Prefill (arXiv 2510.08055).

A wave of whole prompts passes one group of stops in a turn, where `Chunked` would pass a part of
the prompts through all stops. Each turn costs about as much, and every weight is read for a prompt
once instead of once per chunk: that is what pays where weights are many, as in models of experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from blockllm.engine.policies.chunked import admit, plan_pools
from blockllm.engine.policies.paused import decodes, resume
from blockllm.engine.policies.tenants import FairTenants
from blockllm.engine.work import Plan, View, Work


class Layered:
    """Decoding rows pass all stops in every turn; one wave of prompts at a time passes a group.

    A wave cannot wait inside a span, so the engine cuts models into layers for it.
    """

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        decoding = {known.number for known in view.running if decodes(known)}
        budget = max(1, view.max_rows - len(decoding))
        in_flight = any(known.paused for known in view.running)
        fair = FairTenants(view)
        # each row of a wave passes one stop in a turn, at least
        room = 0 if in_flight else budget * _fewest_stops(view, fair)
        rows = dict.fromkeys(decoding, 1)
        prompts = [known for known in view.running if known.number not in decoding]
        rows |= fair.split(prompts, room)
        work, preempted = plan_pools(view, rows)
        wave = [each for each in work if each.sequence not in decoding]
        admitted: list[Work] = []
        if room and not wave and not preempted:
            admitted = admit(view, room, fair)
            wave += admitted
        for known in view.running:
            if known.number not in preempted:
                wave += resume(known)
        return Plan(
            preempt=tuple(preempted),
            admit=tuple(each.sequence for each in admitted),
            work=(*(w for w in work if w.sequence in decoding), *_next_group(wave, budget)),
        )


def _fewest_stops(view: View, fair: FairTenants) -> int:
    ahead = [*view.running, *islice(fair.in_turn(), 1)] if view.waiting else view.running
    return min((known.num_stops for known in ahead if not decodes(known)), default=1)


def _next_group(wave: Sequence[Work], budget: int) -> Iterator[Work]:
    """The wave through as many stops as make a turn of the wanted size."""
    rows = sum(work.rows for work in wave)
    groups = max(1, -(-rows // budget))
    for work in wave:
        stops = max(1, -(-(work.last_stop + 1) // groups))
        yield work._replace(last_stop=min(work.last_stop, work.first_stop + stops - 1))
