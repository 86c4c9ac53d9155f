"""From checkpoints to shared blocks: the offline store and its catalogue."""

from __future__ import annotations

from blockllm.zoo.reports import AddReport, GcReport, Problem, Progress, VerifyReport
from blockllm.zoo.zoo import Zoo

__all__ = ["AddReport", "GcReport", "Problem", "Progress", "VerifyReport", "Zoo"]
