"""A turn belongs to one model: what a server does that cannot batch across models."""

from __future__ import annotations

from collections.abc import Iterable

from blockllm.engine.policies.chunked import Chunked
from blockllm.engine.work import Known, Plan, Policy, View


class ByModel:
    """Another policy, for one model at a time."""

    def __init__(self, inner: Policy | None = None) -> None:
        """`inner`: what it is asked about each model; default: `Chunked`."""
        self._inner = inner or Chunked()

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`. Looks at all requests, as the servers that it stands for do."""
        waiting = [known for line in view.waiting.values() for known in line]
        for model in model_order([*view.running, *waiting]):
            running = [known for known in view.running if known.model == model]
            own = view._replace(
                running=running,
                waiting={"": own} if (own := [k for k in waiting if k.model == model]) else {},
                max_sequences=view.max_sequences - len(view.running) + len(running),
            )
            plan = self._inner.plan(own)
            if plan.work or plan.preempt:
                return plan
        return Plan((), (), ())


def model_order(known: Iterable[Known]) -> list[str]:
    """Models in the order in which they may take the next turn.

    Longest ago goes first, so no model waits for more turns than there are others with work; among
    models that never had one, the first of `known` decides.
    """
    last = {each.model: each.last_turn for each in known}
    return sorted(last, key=lambda model: last[model])
