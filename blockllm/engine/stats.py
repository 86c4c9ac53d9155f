"""Counting hops, and the snapshot of the books that metrics are made of."""

from __future__ import annotations

from blockllm.engine.batch.arrays import HopPlan
from blockllm.engine.build import Parts
from blockllm.engine.scheduler import Scheduler
from blockllm.engine.sequence.sequence import RouteState
from blockllm.observability.stats import EngineStats, SpanStats


class HopCounters:
    """Hops and rows per span since the start."""

    def __init__(self, num_spans: int) -> None:
        self.turns = 0
        self.hops = [0] * num_spans
        self.rows = [0] * num_spans

    def count(self, hop: HopPlan) -> None:
        """Book one hop."""
        for span in hop.spans:
            self.hops[span] += 1
            self.rows[span] += len(hop.carried.rows)


def snapshot(parts: Parts, scheduler: Scheduler, counters: HopCounters) -> EngineStats:
    """Everything a metrics page wants to know, copied."""
    pools = [cache.pool for cache in parts.caches]
    spans = zip(parts.plan.spans, counters.hops, counters.rows, strict=True)
    return EngineStats(
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting,
        num_pages=sum(pool.num_pages for pool in pools),
        num_pages_free=sum(pool.num_free for pool in pools),
        num_pages_cached=sum(pool.num_cached for pool in pools),
        num_blocks=len({block.id for span in parts.plan.spans for block in span.blocks}),
        weight_bytes=parts.weight_bytes,
        weight_bytes_unshared=parts.weight_bytes_unshared,
        kv_bytes=sum(cache.tensor.nbytes for cache in parts.caches),
        prompt_tokens={name: state.prompt_tokens for name, state in parts.states.items()},
        generation_tokens={name: state.generation_tokens for name, state in parts.states.items()},
        prefix_queries=scheduler.prefix_queries,
        prefix_hits=scheduler.prefix_hits,
        preemptions=scheduler.preemptions,
        turns=counters.turns,
        max_context={name: _room(parts, state) for name, state in parts.states.items()},
        spans=tuple(SpanStats(s.name, s.models, hops, rows) for s, hops, rows in spans),
    )


def _room(parts: Parts, state: RouteState) -> int:
    """Longest sequence of a model: its context, or what the page pool holds if that is less."""
    cache = parts.caches[state.kv_class]
    pages = cache.pool.num_pages // state.kv.total_bundles
    return min(state.max_context, max(0, pages * cache.page_size - state.virtual.num_tokens))
