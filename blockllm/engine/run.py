"""The rows of a batch through their routes: the one loop over hops that all drivers share."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from blockllm.engine.batch import Batch, Hop
from blockllm.engine.queues import SpanQueues
from blockllm.engine.setup import Parts
from blockllm.observability.timeline import OFF, Timeline


def run_rows(
    parts: Parts, queues: SpanQueues, batch: Batch, timeline: Timeline = OFF
) -> Iterator[tuple[Hop, torch.Tensor, bool]]:
    """Each hop with what it computed and whether that is behind a head: then logits of the rows
    that are wanted, else hidden states. To be called in torch's inference mode."""
    part = timeline.part
    queues.enter(batch)
    while True:
        with part("join"):
            hop = queues.pick()
        if hop is None:
            return
        with part("compute", hop.plan):
            out = parts.executor.run(hop, timeline)
        is_head = parts.has_head[hop.plan.spans[-1]]
        with part("hand over", hop.plan):
            queues.hand_over(None if is_head else out)
        yield hop, out, is_head
