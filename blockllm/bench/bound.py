"""The least that a decoding turn has to read and to multiply, held against the machine's limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
import numpy as np

from blockllm.bench.roofline import Limits
from blockllm.chain import SpanPlan
from blockllm.core import EmbedFunction, Layer, LayerFunction, keeps_kv
from blockllm.engine.device.budget import Precision


class Demand(NamedTuple):
    """Bytes that have to come from memory once, and floating-point operations."""

    num_bytes: float
    flops: float


class Bound(msgspec.Struct, frozen=True):
    """What decoding turns need (medians) and how near they came to the larger of the limits."""

    num_bytes: float
    flops: float
    milliseconds: float  # the least
    fraction: float  # of the turns' times, median of turns
    limits: Limits


def bound_of(
    turns: Iterable[tuple[Demand, float]],  # with the seconds that each took
    limits: Limits,
) -> Bound:
    """Hold turns against the limits; there must be one at least."""
    demands, seconds = zip(*turns, strict=True)
    least = np.array([limits.seconds(*demand) for demand in demands])
    num_bytes, flops = np.median(np.array(demands), axis=0).tolist()
    return Bound(
        num_bytes=num_bytes,
        flops=flops,
        milliseconds=float(np.median(least)) * 1e3,
        fraction=float(np.median(least / np.array(seconds))),
        limits=limits,
    )


class Needs:
    """What hops need whose rows are one per sequence: each weight of their spans once, each delta
    of their models once, all keys and values. Products of deltas and of int8 count nothing."""

    def __init__(self, plan: SpanPlan, precision: Precision, context: float) -> None:
        """`context`: tokens that a sequence holds, on average."""
        self._precision = precision
        self._spans = [
            [layer for block in span.blocks for layer in block.layers] for span in plan.spans
        ]
        self._context = context
        self._deltas = {  # bytes by span and model
            (stop.span, model): sum(
                precision.nbytes(tensor)
                for delta in stop.deltas
                if delta is not None
                for tensor in delta.tensors()
            )
            for model, route in plan.routes.items()
            for stop in route.stops
        }

    def of_hops(self, hops: Iterable[Mapping[str, Any]]) -> Demand:
        """Of one turn's; each is what a timeline says about it (`HopPlan.facts`)."""
        demands = [
            work
            for hop in hops
            for span in hop["spans"]
            for work in self._of_span(span, hop["rows"], hop["models"])
        ]
        return Demand(*map(sum, zip(*demands, strict=True)))

    def _of_span(self, span: int, rows: int, models: Iterable[str]) -> Iterable[Demand]:
        for layer in self._spans[span]:
            yield self._of_weights(layer, rows)
            yield self._of_attention(layer, rows)
        yield Demand(sum(self._deltas[span, model] for model in models), 0)

    def _of_weights(self, layer: Layer, rows: int) -> Demand:
        if isinstance(layer.function, EmbedFunction):
            return Demand(0, 0)  # a row of the table for each row
        tensors = layer.tensors.values()
        matrices = [t for t in tensors if len(t.shape) == 2 and t.dtype != "I8"]
        return Demand(
            sum(map(self._precision.matrix_bytes, tensors)),
            2 * rows * sum(math.prod(t.shape) for t in matrices),
        )

    def _of_attention(self, layer: Layer, rows: int) -> Demand:
        function = layer.function
        if not isinstance(function, LayerFunction) or not keeps_kv(function):
            return Demand(0, 0)
        seen = rows * min(self._context, function.window or self._context)
        kept = 2 * function.num_kv_heads * function.head_dim * self._precision.itemsize
        return Demand(seen * kept, 4 * seen * function.num_heads * function.head_dim)
