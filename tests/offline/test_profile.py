"""Costs: the fit against what defines it, sizes of real hops, and profiles kept in the zoo."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple
from numpy.typing import NDArray

from blockllm.chain import plan_spans
from blockllm.cli import profile as command
from blockllm.engine.build import build
from blockllm.engine.costs.profiles import (
    KIND,
    FitError,
    Sample,
    SpanProfile,
    describe_device,
    find_costs,
    shapes_of,
)
from blockllm.engine.costs.span import HopSize, SpanCost
from blockllm.errors import OutOfMemory
from blockllm.offline import cost_fit, load_time, profile
from blockllm.offline.hops import Group, HopDriver, PoolLimits, grid, held_out
from blockllm.zoo import Zoo
from tests.driver import settings
from tests.engine.conftest import zoo  # noqa: F401

EFFORT = profile.Effort(rounds=2, sequences=4, context=32, rows=16)
COST = SpanCost(
    constant=2e-5, per_row=3e-6, per_output=5e-6, per_token=4e-9, per_pair=1e-9, per_chunk=4e-5,
    per_ridden=7e-7, per_rider=3e-5, knee=8,
)  # fmt: skip


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12))
def test_nnls_meets_the_conditions_of_its_optimum(seed: int, terms: int, rows: int) -> None:
    """Karush-Kuhn-Tucker: no used term can move, no unused one would help."""
    chosen = np.random.default_rng(seed)
    matrix = chosen.normal(size=(rows, terms)) * 10.0 ** chosen.integers(-3, 4, terms)
    target = chosen.normal(size=rows)
    x = cost_fit.nnls(matrix, target)
    scale = np.linalg.norm(matrix, axis=0)
    gradient = matrix.T @ (target - matrix @ x) / scale  # of the loss, negative
    assert (x >= 0).all()
    assert (gradient < 1e-8).all()
    assert np.abs(gradient[x > 0]).max(initial=0) < 1e-8


def test_nnls_beats_every_point_of_a_fine_grid() -> None:
    chosen = np.random.default_rng(3)
    matrix, target = chosen.uniform(-1, 1, (9, 2)), chosen.uniform(0, 2, 9)

    def loss(x: NDArray[np.float64]) -> float:
        return float(((matrix @ x - target) ** 2).sum())

    best = loss(cost_fit.nnls(matrix, target))
    values = np.linspace(0, 4, 201)
    assert best <= min(loss(np.array([a, b])) for a in values for b in values) + 1e-12


def made_samples(cost: SpanCost, noise: float = 0.0) -> list[Sample]:
    chosen = np.random.default_rng(0)
    sizes = [HopSize.decoding(n, n * c) for n in (1, 2, 4, 8, 16, 32, 64) for c in (16, 512)]
    sizes += [HopSize(n, 1, 0, n * (n + 1) // 2, 1) for n in (8, 32, 128, 256)]
    sizes += [HopSize(2 * n + 3, 5, 1200, 800 * n, 2) for n in (8, 32, 128)]
    sizes += [size._replace(ridden=size.rows, riders=1) for size in sizes]
    return [Sample(s, cost.seconds(s) * float(1 + noise * chosen.normal())) for s in sizes]


def test_the_fit_finds_the_cost_that_made_the_samples() -> None:
    samples = made_samples(COST)
    found = cost_fit.fit(samples)
    assert found.knee == COST.knee
    assert astuple(found) == pytest.approx(astuple(COST), rel=1e-6)
    assert cost_fit.error_of(found, samples).p95 < 1e-9


def test_the_fit_bears_noise() -> None:
    found = cost_fit.fit(made_samples(COST, noise=0.05))
    error = cost_fit.error_of(found, made_samples(COST))
    assert error.median < 0.03 and error.hops == len(made_samples(COST))


def test_errors_are_relative_to_what_was_measured() -> None:
    size = HopSize.decoding(1, 1)
    samples = [Sample(size, COST.seconds(size) * factor) for factor in (1.0, 2.0, 2.0)]
    assert cost_fit.error_of(COST, samples) == FitError(0.5, pytest.approx(0.5), 3)


@given(st.integers(1, 200), st.integers(1, 500), st.integers(1, 500))
def test_more_work_never_costs_less(rows: int, tokens: int, more: int) -> None:
    """And below the knee another row costs only what it adds beside the weights."""
    assert COST.estimate(rows + 1, tokens) >= COST.estimate(rows, tokens)
    assert COST.estimate(rows, tokens + more) > COST.estimate(rows, tokens)
    below = COST.estimate(8, 100) - COST.estimate(1, 100)
    assert below == pytest.approx(0, abs=1e-15)


def test_the_grid_stays_within_its_limits() -> None:
    for limits in (PoolLimits(32, 512, 256), PoolLimits(1, 20, 8), PoolLimits(4, 64, 64)):
        for load in [*grid(limits), *held_out(limits, 30)]:
            assert sum(group.sequences for group in load) <= limits.sequences + 1
            assert all(1 <= g.rows <= g.context <= limits.context for g in load)
            assert sum(g.sequences * g.rows for g in load) <= max(limits.rows, limits.sequences)


def test_sizes_are_those_of_the_hops(zoo: Zoo) -> None:  # noqa: F811
    parts = build(zoo, ["base", "upper", "lora-upper"], settings(prefix_cache=False))
    driver = HopDriver(parts, PoolLimits(4, 32, 16))
    load = (Group(2, 1, 20), Group(1, 5, 9))
    hops = list(driver.run(driver.make("lora-upper", load)))
    pairs = 5 + 6 + 7 + 8 + 9
    expected = HopSize(rows=7, outputs=3, kv_tokens=40, pairs=pairs, chunks=1)
    stops = parts.plan.routes["lora-upper"].stops
    changed = {stop.span: int(any(stop.deltas)) for stop in stops}
    assert {hop.span: hop.size for hop in hops} == {
        span: expected._replace(ridden=7 * riders, riders=riders)
        for span, riders in changed.items()
    }
    assert {0, 1} == set(changed.values())
    assert all(hop.seconds > 0 for hop in hops)
    driver.close()
    for cache in parts.caches:
        cache.check_books(idle=True)


def test_a_pool_without_room_is_refused(zoo: Zoo) -> None:  # noqa: F811
    parts = build(zoo, ["base"], settings(prefix_cache=False))
    parts.caches[0].pool.take(parts.caches[0].pool.num_available)
    with pytest.raises(OutOfMemory, match="--memory"):
        HopDriver(parts, PoolLimits(4, 32, 16))


def test_spans_of_equal_shape_are_one(zoo: Zoo) -> None:  # noqa: F811
    """The last layers of `base` and `upper` hold other weights; what they cost is the same."""
    plan = plan_spans(zoo.chains(["base", "upper", "lonely"]).values())
    shapes = shapes_of(plan)
    of = {m: [shapes[stop.span] for stop in route.stops] for m, route in plan.routes.items()}
    spans = {m: [stop.span for stop in route.stops] for m, route in plan.routes.items()}
    assert spans["base"] != spans["upper"] and of["base"] == of["upper"]
    assert not set(of["lonely"]) & set(of["base"])
    with_adapter = plan_spans(zoo.chains(["base", "upper", "lora-all"]).values())
    assert not set(shapes_of(with_adapter)[:2]) & set(of["base"])  # a delta costs time


def test_few_models_cover_all_shapes(zoo: Zoo) -> None:  # noqa: F811
    plan = plan_spans(zoo.chains().values())
    shapes = shapes_of(plan)
    chosen = profile.cover(plan, set(shapes))
    passed = {shapes[stop.span] for model in chosen for stop in plan.routes[model].stops}
    assert passed == set(shapes) and len(chosen) < len(plan.routes)


@pytest.fixture
def profiled(zoo: Zoo, tmp_path: Path) -> tuple[Zoo, list[profile.ProfiledSpan]]:  # noqa: F811
    models = ["base", "lora-all"]
    return zoo, profile.profile(zoo, models, settings(), EFFORT, again=True)


def test_a_profile_is_kept_and_found(
    profiled: tuple[Zoo, list[profile.ProfiledSpan]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, found = profiled
    assert found and not any(one.known for one in found)
    for one in found:
        assert one.profile.cost.estimate(4, 64) > 0
        assert one.profile.error.hops > 0 and one.profile.samples
        assert one.profile.load.ready > 0 and one.profile.nbytes > 0
    monkeypatch.setattr(profile, "build", None)  # nothing is loaded when all is known
    again = profile.profile(store, ["base", "lora-all"], settings(), EFFORT)
    assert all(one.known for one in again)
    assert [one.profile for one in again] == [one.profile for one in found]


def test_the_engine_finds_costs_of_its_spans(
    profiled: tuple[Zoo, list[profile.ProfiledSpan]],
) -> None:
    store, found = profiled
    plan = plan_spans(store.chains(["base", "lora-all"]).values())
    costs = find_costs(store, plan, found[0].profile.device)
    assert [costs[span.index] for span in plan.spans] == [one.profile.cost for one in found]
    more = settings(threads=found[0].profile.device.threads + 1)
    other = describe_device(torch.device("cpu"), torch.float32, more)
    assert find_costs(store, plan, other) == {}


def test_rounds_change_the_key_of_nothing_but_threads_and_dtype_do() -> None:
    where, dtype = torch.device("cpu"), torch.float32
    one = describe_device(where, dtype, settings(threads=1))
    assert one.key == describe_device(where, dtype, settings(threads=1, page_size=8)).key
    assert one.key != describe_device(where, dtype, settings(threads=2)).key
    assert one.key != describe_device(where, dtype, settings(threads=1, kernels="plain")).key


def test_disk_is_timed_only_when_pages_were_dropped(
    zoo: Zoo,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    span = plan_spans(zoo.chains(["base"]).values()).spans[0]
    monkeypatch.setattr(load_time, "drop_pages", lambda path: False)
    assert load_time.time_reading(zoo, span, 2).disk is None
    monkeypatch.setattr(load_time, "drop_pages", lambda path: True)
    found = load_time.time_reading(zoo, span, 2)
    assert found.disk is not None and found.disk > 0 and found.page_cache > 0


def test_a_file_that_was_just_read_is_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "pack"
    path.write_bytes(bytes(1 << 16))
    with path.open("rb") as file:
        file.read()
        assert load_time.resident_share(file.fileno()) == 1.0


def test_the_command_prints_a_table(
    zoo: Zoo,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(zoo._folder.root)
    options = {"rounds": 1, "sequences": 2, "context": 16, "rows": 8, "memory": "64MiB"}
    for again in (True, False):
        command.profile(
            folder,
            "base",
            again,
            **options,
            device="cpu",
            dtype="float32",
            threads=1,
            as_json=False,
        )  # type: ignore[arg-type]
        out = capsys.readouterr().out
        assert "embed + 4 decoder + head" in out
        assert ("1 measured, 0 known" if again else "0 measured, 1 known") in out
    assert zoo.findings(KIND, SpanProfile)
