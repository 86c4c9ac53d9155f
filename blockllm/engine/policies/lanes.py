"""Decoding in one lane, prompts in another, each with its share of the cores: semi-PD (arXiv
2504.19867), whose two phases share weights and pages as ours do, so nothing is copied between them.

A prompt's long batch then delays no answer that is being decoded; what both lose is each other's
cores, and the weights are read once for each of them. Shares change between batches.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from blockllm.engine.policies.paused import decodes
from blockllm.engine.work import Offline, Plan, Policy, View

DECODING, PROMPTS = 0, 1


class Lanes:
    """What another policy plans, in two lanes. It sees only sequences that a free lane serves."""

    def __init__(self, inner: Policy) -> None:
        self._inner = inner

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`."""
        if sum(view.lanes) >= view.threads:
            return Plan((), (), ())  # what runs has all cores until it is through
        decoding = {known.number for known in view.running if decodes(known)}
        plan = self._inner.plan(_served(view, decoding))
        work = [each._replace(lane=_lane(each.sequence, decoding)) for each in plan.work]
        wanted = [sum(each.lane == lane for each in work) for lane in (DECODING, PROMPTS)]
        return plan._replace(work=tuple(work), shares=shares(view, wanted))


def _served(view: View, decoding: Set[int]) -> View:
    """What free lanes serve; the others keep their slots."""
    running = [k for k in view.running if not view.lanes[_lane(k.number, decoding)]]
    slots = view.max_sequences - len(view.running) + len(running)
    if view.lanes[PROMPTS]:
        view = view._replace(waiting={}, offline=Offline({}, view.offline.tenants))
    return view._replace(running=running, max_sequences=slots)


def _lane(number: int, decoding: Set[int]) -> int:
    return DECODING if number in decoding else PROMPTS


def shares(view: View, wanted: Sequence[int]) -> tuple[int, ...]:
    """Threads of each lane that gets a batch, by how many sequences it serves. A lane that is alone
    gets all that are free; one that computes keeps what it has."""
    free = view.threads - sum(view.lanes)
    decoding, prompts = wanted
    if not decoding or not prompts:
        return tuple(free if count else 0 for count in wanted)
    of_prompts = min(max(1, round(free * prompts / (decoding + prompts))), free - 1)
    return free - of_prompts, of_prompts
