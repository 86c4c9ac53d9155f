"""Policies: which rows go next. Each is a pure function of a view; later ones wrap earlier ones."""

from blockllm.engine.policies.by_model import ByModel
from blockllm.engine.policies.chunked import Chunked
from blockllm.engine.policies.layered import Layered
from blockllm.engine.work import Policy

POLICIES: dict[str, type[Policy]] = {"blocks": Chunked, "models": ByModel, "layered": Layered}

__all__ = ["POLICIES", "ByModel", "Chunked", "Layered"]
