"""Parts inside compute: times the functions of a layer from outside, while asked to.

The engine has no measuring code per layer. Here its functions are wrapped for the length of one
run, and layers run part by part even where one native call does it all, so totals are larger than
without.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from blockllm.engine.layers.section import Section
from blockllm.observability.timeline import Timeline

# (module, class or "", function, what the part is called)
TARGETS = (
    ("blockllm.engine.layers.linear", "SharedLinear", "__call__", "linear"),
    ("blockllm.engine.layers.embedding", "Embedding", "__call__", "embedding"),
    ("blockllm.engine.layers.norm", "", "rms_norm", "norm"),
    ("blockllm.engine.layers.norm", "", "add_rms_norm", "norm"),
    ("blockllm.engine.layers.norm", "", "rms_norm_heads", "norm"),
    ("blockllm.engine.layers.plain", "", "silu_multiply", "activation"),
    ("blockllm.engine.attention.rows", "AttentionRows", "place", "rotate and write"),
    ("blockllm.engine.attention.native", "NativeAttention", "attend", "attention"),
)


@contextmanager
def layer_parts(timeline: Timeline, on: bool) -> Iterator[None]:
    """While active, and if `on`, every target is a part of the timeline."""
    undo: list[tuple[Any, str, Any]] = []
    if on:
        undo.append((Section, "__call__", Section.__call__))
        setattr(Section, "__call__", Section.run_plain)  # noqa: B010 (mypy)
    for module, owner, name, part in TARGETS if on else ():
        holder: Any = importlib.import_module(module)
        holder = getattr(holder, owner) if owner else holder
        original = getattr(holder, name)
        undo.append((holder, name, original))
        setattr(holder, name, _timed(original, timeline, part))
    try:
        yield
    finally:
        for holder, name, original in undo:
            setattr(holder, name, original)


def _timed(function: Callable[..., Any], timeline: Timeline, part: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **options: Any) -> Any:
        with timeline.part(part):
            return function(*arguments, **options)

    return timed
