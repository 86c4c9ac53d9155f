"""Execution on one device: rows in, tokens out."""

from blockllm.engine.loop import Engine

__all__ = ["Engine"]
