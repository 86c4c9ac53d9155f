"""Policies: which rows go next. Each is a pure function of a view; later ones wrap earlier ones."""

from collections.abc import Callable, Mapping, Sequence

from blockllm.engine.policies.block_limits import BlockLimits, StopLimit
from blockllm.engine.policies.by_model import ByModel
from blockllm.engine.policies.chunked import Chunked
from blockllm.engine.policies.lanes import Lanes
from blockllm.engine.policies.layered import Layered
from blockllm.engine.policies.slack import Slack
from blockllm.engine.work import Policy

__all__ = ["BlockLimits", "ByModel", "Chunked", "Lanes", "Layered", "Slack", "make_policy"]


def make_policy(batching: str, limits: Mapping[str, Sequence[StopLimit]]) -> Policy:
    """The policy of a setting `batching`. `limits`: stops of every model, with the rows that their
    hops take; empty: hops have no limits."""
    policy: Policy = Slack(Layered() if batching == "layered" else Chunked())
    if limits:
        policy = BlockLimits(policy, limits)
    wrappers: dict[str, Callable[[Policy], Policy]] = {"models": ByModel, "lanes": Lanes}
    return wrappers[batching](policy) if batching in wrappers else policy
