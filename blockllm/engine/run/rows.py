"""The rows of a batch through their routes: the one loop over hops that all drivers share."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from blockllm.engine.batch.arrays import Batch, Hop
from blockllm.engine.batch.hops import HopCursor
from blockllm.engine.run.executor import Executor
from blockllm.engine.run.graphs import GraphExecutor
from blockllm.observability.timeline import OFF, Timeline


def run_rows(
    executor: Executor | GraphExecutor,
    cursor: HopCursor,
    batch: Batch,
    timeline: Timeline = OFF,
    threads: int = 0,
) -> Iterator[tuple[Hop, torch.Tensor]]:
    """Each hop with what it computed: behind a head logits of the rows that are wanted, else hidden
    states. To be called in torch's inference mode."""
    part = timeline.part
    cursor.enter(batch)
    while True:
        with part("join"):
            hop = cursor.pick()
        if hop is None:
            return
        with part("compute", hop.plan):
            out = executor.run(hop, timeline, threads)
        with part("hand over", hop.plan):
            cursor.hand_over(None if hop.plan.has_head else out)
        yield hop, out
