"""Many fine-tuned language models, one pool of shared blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blockllm.api.llm import LLM
from blockllm.core import Sampling

__all__ = ["LLM", "Sampling"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch is imported only when the engine is used, so the command line starts quickly
    if name == "LLM":
        from blockllm.api.llm import LLM

        return LLM
    raise AttributeError(f"module 'blockllm' has no attribute {name!r}")
