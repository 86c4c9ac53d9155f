"""How many rows of a hop pay: with more of them a row costs about as much as in a hop of its own.

Up to the knee rows are free beside the reading of weights; a constant is shared by more rows still.
Pure: asked once, when an engine is built.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from blockllm.chain import SpanPlan
from blockllm.engine.costs.span import HopSize, SpanCost

_LEAST_GAIN = 0.05  # of the seconds per row, when rows double


def row_limits(
    plan: SpanPlan, costs: Mapping[int, SpanCost], turn_seconds: float, max_rows: int
) -> dict[int, int]:
    """The limit of every span: rows that pay, fewer where the hop would take more than its share of
    a turn along a route, never fewer than its knee, which are free. `turn_seconds` 0: any time."""
    shares = _shares(plan, costs, turn_seconds or math.inf)
    limits = {}
    for span, cost in costs.items():
        rows = min(rows_that_pay(cost, max_rows), rows_within(cost, shares[span], max_rows))
        limits[span] = min(max_rows, max(rows, math.ceil(cost.knee), 1))
    return limits


def rows_that_pay(cost: SpanCost, max_rows: int) -> int:
    """The fewest rows of which twice as many would cost hardly less each; at most `max_rows`."""
    return _first(
        lambda rows: _seconds(cost, 2 * rows) > 2 * (1 - _LEAST_GAIN) * _seconds(cost, rows),
        max_rows,
    )


def rows_within(cost: SpanCost, seconds: float, max_rows: int) -> int:
    """The most rows of a hop that takes no longer; 0 if one row does, at most `max_rows`."""
    if _seconds(cost, max_rows) <= seconds:
        return max_rows
    return _first(lambda rows: _seconds(cost, rows) > seconds, max_rows) - 1


def _first(holds: Callable[[int], bool], most: int) -> int:
    """The first number for which it holds, as for all after it; `most` if there is none before."""
    low, high = 1, most
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _seconds(cost: SpanCost, rows: int) -> float:
    return cost.seconds(HopSize.decoding(rows, 0))


def _shares(plan: SpanPlan, costs: Mapping[int, SpanCost], turn_seconds: float) -> dict[int, float]:
    """Seconds that a span's hop may take, such that those along any route make one turn; a span's
    part of that is as large as its part of the time that a single row takes."""
    shares = dict.fromkeys(costs, turn_seconds)
    for route in plan.routes.values():
        alone = {stop.span: _seconds(costs[stop.span], 1) for stop in route.stops}
        for span, seconds in alone.items():
            own = turn_seconds * seconds / sum(alone.values())
            shares[span] = min(shares[span], own)
    return shares
