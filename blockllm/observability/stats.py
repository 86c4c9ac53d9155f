"""The books of one engine, as it reports them."""

from __future__ import annotations

import msgspec


class SpanStats(msgspec.Struct, frozen=True):
    """Counters of one span since the start: hops run and rows they carried."""

    name: str
    models: tuple[str, ...]
    hops: int
    rows: int


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot of one engine's books; counters only grow, `num_*` are levels."""

    num_running: int = 0
    num_waiting: int = 0
    num_pages: int = 0
    num_pages_free: int = 0
    num_pages_cached: int = 0
    num_blocks: int = 0
    weight_bytes: int = 0
    weight_bytes_unshared: int = 0
    kv_bytes: int = 0
    prompt_tokens: dict[str, int] = {}
    generation_tokens: dict[str, int] = {}
    prefix_queries: int = 0
    prefix_hits: int = 0
    preemptions: int = 0
    turns: int = 0
    max_context: dict[str, int] = {}  # longest sequence per model that the KV pool can hold
    spans: tuple[SpanStats, ...] = ()
