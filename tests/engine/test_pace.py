"""A turn holds as many prompt rows as fit into the wanted time, by the spans' costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.engine import Engine
from blockllm.engine.cost import HopSize, SpanCost
from blockllm.engine.pace import LEAST_ROWS, Load, Pace
from blockllm.errors import ConfigError
from blockllm.zoo import Zoo
from tests.driver import greedy, request, settings
from tests.makers import make_checkpoint

SPANS = range(4)
loads = st.builds(
    Load, st.lists(st.sampled_from(SPANS), min_size=1, unique=True), st.integers(0, 3000)
)
costs = st.builds(
    SpanCost,
    **{name: st.floats(0, 1e-3) for name in SpanCost.__struct_fields__ if name != "knee"},
    knee=st.floats(0, 16),
)


def seconds(pace: Pace, decoding: list[Load], prompt: Load, rows: int) -> float:
    """What the turn costs, span by span."""
    total = 0.0
    for span in {span for load in [*decoding, prompt] for span in load.spans}:
        here = [load for load in decoding if span in load.spans]
        size = HopSize.decoding(len(here), sum(load.context + 1 for load in here))
        if span in prompt.spans:
            pairs = sum(range(prompt.context + 1, prompt.context + rows + 1))
            size = size._replace(rows=size.rows + rows, pairs=pairs, chunks=1)
        total += pace.costs[span].seconds(size)
    return total


@given(
    st.floats(1e-4, 1.0),
    st.fixed_dictionaries(dict.fromkeys(SPANS, costs)),
    st.lists(loads, min_size=1, max_size=5),
    loads,
    st.integers(1, 200),
)
def test_the_largest_chunk_that_fits_is_taken(
    limit: float, by_span: dict[int, SpanCost], decoding: list[Load], prompt: Load, rows: int
) -> None:
    pace, max_rows = Pace(limit, by_span), rows + len(decoding)
    found = pace.rows(decoding, prompt, max_rows) - len(decoding)
    if found > min(LEAST_ROWS, max_rows):
        assert seconds(pace, decoding, prompt, found) <= limit * (1 + 1e-9)
    if found < rows:
        assert seconds(pace, decoding, prompt, found + 1) > limit * (1 - 1e-9)


def test_nobody_waits_without_decoding_sequences() -> None:
    assert Pace(1e-9, {}).rows([], Load([0], 0), 512) == 512


def test_spans_must_be_profiled(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("a", make_checkpoint(tmp_path / "a"))
    with pytest.raises(ConfigError, match="zoo profile"):
        Engine(zoo, ["a"], settings(max_turn_seconds=0.1))


def test_chunks_shrink_while_something_decodes(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("a", make_checkpoint(tmp_path / "a", max_position_embeddings=512))
    engine = Engine(zoo, ["a"], settings(max_rows=256, prefix_cache=False))
    cost = SpanCost(0.0, 1e-3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    engine._roster._pace = Pace(0.065, {0: cost})  # 1 ms a row
    engine.submit(request("first", "a", [5, 6, 7], greedy(40)))
    engine.step()
    engine.submit(request("second", "a", list(range(5, 95)) * 2, greedy(2)))
    rows = []
    while "second" in engine._roster._by_id:
        before = sum(span.rows for span in engine.stats().spans)
        engine.step()
        rows.append(sum(span.rows for span in engine.stats().spans) - before)
    assert rows[:3] == [65, 65, 53]
