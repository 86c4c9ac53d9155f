"""Plans are pure functions of workloads, and their draws follow the laws they are named after."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.bench.draws import draw_arrivals, draw_lengths, draw_models
from blockllm.bench.trace import read_trace, write_trace
from blockllm.bench.workload import Row, Workload, plan, rows_of
from blockllm.errors import ConfigError

BASE = Workload(models=("a", "b", "c"), concurrency=4, requests=40)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.integers(1, 500), st.integers(0, 500), st.integers(0, 2**32))
def test_uniform_lengths_stay_in_range(low: int, more: int, seed: int) -> None:
    drawn = draw_lengths(f"uniform:{low}:{low + more}", 50, random(seed))
    assert len(drawn) == 50 and all(low <= length <= low + more for length in drawn)


@given(
    st.sampled_from(["lognormal:{}:1.5", "geometric:{}", "fixed:{}", "{}"]),
    st.integers(1, 300),
    st.integers(0, 2**32),
)
def test_lengths_are_at_least_one(form: str, size: int, seed: int) -> None:
    assert min(draw_lengths(form.format(size), 50, random(seed))) >= 1


def test_lengths_have_the_middle_they_are_named_after() -> None:
    assert draw_lengths("128", 3, random()) == [128, 128, 128]
    assert np.mean(draw_lengths("geometric:32", 20_000, random())) == pytest.approx(32, rel=0.03)
    drawn = np.array(draw_lengths("lognormal:128:0.6", 20_000, random()))
    assert np.median(drawn) == pytest.approx(128, rel=0.03)
    assert np.log(drawn).std() == pytest.approx(0.6, rel=0.03)
    assert np.mean(draw_lengths("uniform:10:20", 20_000, random())) == pytest.approx(15, rel=0.02)


@pytest.mark.parametrize(
    "law", ["", "0", "many", "uniform:9:3", "uniform:5", "lognormal:9", "normal:3:1", "geometric:0"]
)
def test_wrong_lengths_are_refused(law: str) -> None:
    with pytest.raises(ConfigError, match="length"):
        draw_lengths(law, 1, random())


@pytest.mark.parametrize("law", ["poisson", "gamma", "bursty", "uniform"])
@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_arrivals_ascend_from_zero_at_the_mean_rate(law: str, rate: float) -> None:
    times = np.array(draw_arrivals(law, rate, 3.0, 40_000, random(1)))  # type: ignore[arg-type]
    assert times[0] == 0 and (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.05)


def test_gaps_vary_as_asked() -> None:
    def variation(law: str, burstiness: float) -> float:
        gaps = np.diff(draw_arrivals(law, 5.0, burstiness, 40_000, random(2)))  # type: ignore[arg-type]
        return float(gaps.std() / gaps.mean())

    assert variation("uniform", 1) == pytest.approx(0, abs=1e-6)
    assert variation("poisson", 9) == pytest.approx(1, rel=0.05)
    assert variation("gamma", 0.5) == pytest.approx(0.5, rel=0.05)
    assert variation("gamma", 3) == pytest.approx(3, rel=0.1)
    assert variation("bursty", 4) > 1.5


def test_bursts_are_silent_between() -> None:
    times = np.array(draw_arrivals("bursty", 16.0, 4.0, 5_000, random(3)))
    assert (times % 1.0 <= 0.25 + 1e-9).all()  # cycles of 16 requests, a quarter of each is on


def test_zipf_frequencies() -> None:
    counts = np.bincount(draw_models("zipf:1.2", 5, 60_000, random(4)), minlength=5)
    weights = np.arange(1, 6) ** -1.2
    assert counts / 60_000 == pytest.approx(weights / weights.sum(), rel=0.05)


def test_uniform_popularity_is_even() -> None:
    assert np.bincount(draw_models("uniform", 3, 10, random())).tolist() == [4, 3, 3]


def test_maf_is_heavy_tailed_and_bursty() -> None:
    drawn = np.array(draw_models("maf", 8, 80_000, random(5)))
    assert len(drawn) == 80_000
    slots = [np.bincount(part, minlength=8) / 4_000 for part in np.split(drawn, 20)]
    shares = np.mean(
        [
            np.bincount(draw_models("maf", 8, 2_000, random(seed)), minlength=8)
            for seed in range(20)
        ],
        axis=0,
    )
    assert shares[0] > 2 * shares[4]
    assert np.std(slots, axis=0).max() > 0.2, "a model's share must change over time"


@pytest.mark.parametrize("law", ["zipf", "zipf:x", "zipf:-1", "pareto", "uniform:2"])
def test_wrong_popularity_is_refused(law: str) -> None:
    with pytest.raises(ConfigError, match="popularity"):
        plan(msgspec.structs.replace(BASE, popularity=law))


@given(st.integers(0, 2**32), st.booleans())
def test_equal_workloads_give_equal_plans(seed: int, is_open: bool) -> None:
    workload = msgspec.structs.replace(
        BASE,
        seed=seed,
        requests=8,
        rate=5.0 if is_open else 0.0,
        prompt_length="uniform:1:9",
        popularity="zipf:1",
    )
    assert plan(workload) == plan(workload)
    assert plan(workload) != plan(msgspec.structs.replace(workload, seed=seed + 1))


def test_a_plan_is_what_was_asked_for() -> None:
    workload = msgspec.structs.replace(
        BASE, tenants=("x", "y"), prompt_length="uniform:5:9", token_range="10:20"
    )
    planned = plan(workload)
    assert [p.index for p in planned] == list(range(40))
    assert {p.at for p in planned} == {0.0} and {p.tenant for p in planned} == {"x", "y"}
    for one in planned:
        assert isinstance(one.prompt, list) and len(one.prompt) == one.prompt_tokens
        assert 5 <= one.prompt_tokens <= 9 and one.output_tokens == 64
        assert all(10 <= token < 20 for token in one.prompt)


def test_parts_do_not_disturb_each_other() -> None:
    other = msgspec.structs.replace(BASE, output_length="uniform:1:9", rate=3.0)
    assert [p.prompt for p in plan(BASE)] == [p.prompt for p in plan(other)]


def test_shared_prefixes() -> None:
    planned = plan(msgspec.structs.replace(BASE, shared_prefix="20:2", prompt_length="32"))
    prompts = [p.prompt for p in planned if isinstance(p.prompt, list)]
    assert {len(prompt) for prompt in prompts} == {32}
    assert len({tuple(prompt[:20]) for prompt in prompts}) == 2
    assert len({tuple(prompt) for prompt in prompts}) == 40
    short = plan(msgspec.structs.replace(BASE, shared_prefix="20:2", prompt_length="4"))
    assert {p.prompt_tokens for p in short} == {21}


def test_text_prompts_are_words() -> None:
    (one,) = plan(msgspec.structs.replace(BASE, requests=1, text_prompts=True, prompt_length="7"))
    assert isinstance(one.prompt, str) and len(one.prompt.split()) == one.prompt_tokens == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("models", ()),
        ("requests", 0),
        ("concurrency", 0),
        ("burstiness", 0.0),
        ("token_range", "9:3"),
        ("token_range", "9"),
        ("shared_prefix", "9:0"),
    ],
)
def test_wrong_workloads_name_the_field(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=field):
        plan(msgspec.structs.replace(BASE, **{field: value}))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_traces_come_back_and_replace_the_laws(tmp_path: Path, ending: str) -> None:
    workload = msgspec.structs.replace(BASE, rate=4.0, tenants=("x",), prompt_length="uniform:3:9")
    rows = rows_of(plan(workload))
    path = tmp_path / "new" / f"trace.{ending}"
    write_trace(path, rows)
    assert read_trace(path) == rows
    other = plan(msgspec.structs.replace(BASE, requests=1), read_trace(path))
    assert rows_of(other) == rows and math.isclose(other[-1].at, rows[-1].time)


def test_trace_errors_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    good = msgspec.json.encode(Row(0.0, "a", 1, 1))
    for bad in (b"{", b'{"time": 1}', b"7", good.replace(b"0.0", b"-1"), good[:-1] + b',"x":1}'):
        path.write_bytes(good + b"\n" + bad + b"\n")
        with pytest.raises(ConfigError, match="line 2"):
            read_trace(path)
    path.write_bytes(b"")
    with pytest.raises(ConfigError, match="no request"):
        read_trace(path)
    with pytest.raises(ConfigError, match="missing"):
        read_trace(tmp_path / "missing.csv")
