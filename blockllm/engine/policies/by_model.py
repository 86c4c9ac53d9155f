"""A turn belongs to one model: what a server does that cannot batch across models."""

from __future__ import annotations

from collections.abc import Iterable

from blockllm.engine.policies.chunked import Chunked
from blockllm.engine.work import Known, Lines, Plan, Policy, View


class ByModel:
    """Another policy, for one model at a time."""

    def __init__(self, inner: Policy | None = None) -> None:
        """`inner`: what it is asked about each model; default: `Chunked`."""
        self._inner = inner or Chunked()

    def plan(self, view: View) -> Plan:
        """See `Policy.plan`. Looks at all requests, as the servers that it stands for do."""
        lines = (*view.waiting.values(), *view.offline.waiting.values())
        waiting = [known for line in lines for known in line]
        for model in model_order([*view.running, *waiting]):
            running = [known for known in view.running if known.model == model]
            own = view._replace(
                running=running,
                waiting=_lines_of(model, view.waiting),
                offline=view.offline._replace(waiting=_lines_of(model, view.offline.waiting)),
                max_sequences=view.max_sequences - len(view.running) + len(running),
            )
            plan = self._inner.plan(own)
            if plan.work or plan.preempt:
                return plan
        return Plan((), (), ())


def _lines_of(model: str, lines: Lines) -> Lines:
    found = {name: [k for k in line if k.model == model] for name, line in lines.items()}
    return {name: line for name, line in found.items() if line}


def model_order(known: Iterable[Known]) -> list[str]:
    """Models in the order in which they may take the next turn.

    Longest ago goes first, so no model waits for more turns than there are others with work; among
    models that never had one, the first of `known` decides.
    """
    last = {each.model: each.last_turn for each in known}
    return sorted(last, key=lambda model: last[model])
