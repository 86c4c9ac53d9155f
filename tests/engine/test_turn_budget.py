"""A turn holds as many prompt rows as fit into the wanted time, by the spans' costs."""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.engine import Engine, lanes
from blockllm.engine.costs.span import HopSize, SpanCost
from blockllm.engine.costs.turn_budget import (
    LEAST_ROWS,
    ObservedBudget,
    ProfiledBudget,
    SequencePath,
)
from blockllm.errors import ConfigError
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint

SPANS = range(4)
loads = st.builds(
    SequencePath, st.lists(st.sampled_from(SPANS), min_size=1, unique=True), st.integers(0, 3000)
)
costs = st.builds(
    SpanCost,
    **{name: st.floats(0, 1e-3) for name in SpanCost.__struct_fields__ if name != "knee"},
    knee=st.floats(0, 16),
)


def seconds(
    pace: ProfiledBudget, decoding: list[SequencePath], prompt: SequencePath, rows: int
) -> float:
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
    limit: float,
    by_span: dict[int, SpanCost],
    decoding: list[SequencePath],
    prompt: SequencePath,
    rows: int,
) -> None:
    pace, max_rows = ProfiledBudget(limit, by_span), rows + len(decoding)
    found = pace.rows(decoding, prompt, max_rows) - len(decoding)
    if found > min(LEAST_ROWS, max_rows):
        assert seconds(pace, decoding, prompt, found) <= limit * (1 + 1e-9)
    if found < rows:
        assert seconds(pace, decoding, prompt, found + 1) > limit * (1 - 1e-9)


def test_nobody_waits_without_decoding_sequences() -> None:
    assert ProfiledBudget(1e-9, {}).rows([], SequencePath([0], 0), 512) == 512


@given(st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=20), st.integers(1, 64))
def test_without_profiles_recent_turns_tell(per_row: list[float], decoding: int) -> None:
    pace, running = ObservedBudget(0.5), [SequencePath([0], 9)] * decoding
    prompt = SequencePath([0], 0)
    assert pace.rows(running, prompt, 512) == 512  # nothing is known yet
    for seconds in per_row:
        pace.observe(100, 100 * seconds)
        pace.observe(LEAST_ROWS, 1e9)  # too few rows to tell
    assert pace.rows([], prompt, 512) == 512
    found = pace.rows(running, prompt, 512)
    assert min(512, decoding + LEAST_ROWS) <= found <= 512
    middle = statistics.median_low(per_row[-8:])
    if decoding + LEAST_ROWS < found < 512:
        assert found == int(0.5 / middle)


@given(st.floats(0.0, 0.3), st.floats(1e-4, 1e-2), st.integers(0, 32))
def test_turns_settle_where_they_take_as_long_as_wanted(
    fixed: float, per_row: float, decoding: int
) -> None:
    pace, running = ObservedBudget(0.5), [SequencePath([0], 9)] * decoding
    rows = 512
    for _ in range(40):
        pace.observe(rows, fixed + per_row * rows)
        rows = pace.rows(running, SequencePath([0], 0), 512)
    wanted = 512 if not decoding else (0.5 - fixed) / per_row
    bounded = max(decoding + LEAST_ROWS, min(512, wanted))
    assert bounded * 0.9 - 2 <= rows <= bounded * 1.1 + 2


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_the_wanted_length_is_a_time(tmp_path: Path, seconds: float) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("a", make_checkpoint(tmp_path / "a"))
    with pytest.raises(ConfigError, match="max_turn_seconds: expected 0 or more"):
        Engine(zoo, ["a"], settings(max_turn_seconds=seconds))


def test_an_engine_learns_from_its_own_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("a", make_checkpoint(tmp_path / "a", max_position_embeddings=512))
    limits = {"max_rows": 256, "prefix_cache": False, "max_turn_seconds": 0.05}
    engine = Engine(zoo, ["a"], settings(**limits))
    clock = itertools.count()
    monkeypatch.setattr(lanes.time, "perf_counter", lambda: 0.1 * next(clock))  # a turn: 0.1 s
    run(engine, [request("first", "a", [5] * 100, greedy(1))])
    engine.submit(request("second", "a", [5, 6, 7], greedy(40)))
    engine.step()
    engine.submit(request("third", "a", list(range(5, 95)) * 2, greedy(2)))
    assert rows_of_next_turn(engine) == 50


def test_chunks_shrink_while_something_decodes(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("a", make_checkpoint(tmp_path / "a", max_position_embeddings=512))
    engine = Engine(zoo, ["a"], settings(max_rows=256, prefix_cache=False))
    cost = SpanCost(0.0, 1e-3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    engine._scheduler._budget = ProfiledBudget(0.065, {0: cost})  # 1 ms a row
    engine.submit(request("first", "a", [5, 6, 7], greedy(40)))
    engine.step()
    engine.submit(request("second", "a", list(range(5, 95)) * 2, greedy(2)))
    assert [rows_of_next_turn(engine) for _ in range(3)] == [65, 65, 53]


def rows_of_next_turn(engine: Engine) -> int:
    before = sum(span.rows for span in engine.stats().spans)
    engine.step()
    return sum(span.rows for span in engine.stats().spans) - before
