"""Every kernel case runs, agrees with its twin, and is measured against sane limits."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
import torch

from blockllm.bench import kernels, roofline
from blockllm.bench.kernel_cases import all_cases
from blockllm.bench.kernel_setup import Setup
from blockllm.cli import bench_engine
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.errors import ConfigError

CPU = torch.device("cpu")
SMALL = Setup(32, 48, 4, 2, 8, 96, (1, 5), (16, 300), CPU, torch.float32)
LIMITS = roofline.Limits("cpu", 1, "float32", 1 << 16, 1e10, 1e11, "given")


@pytest.mark.parametrize("case", all_cases(SMALL), ids=lambda c: f"{c.name}-{c.size}")
def test_every_kernel_agrees_with_its_twin(case: kernels.Case) -> None:
    with torch.inference_mode():
        result = kernels.measure(case, LIMITS, CPU, rounds=1)
    assert result.agrees, result.difference
    assert case.bytes > 0 and result.kernel.median > 0 and result.twin.median > 0
    assert result.fraction == pytest.approx(result.limit / result.kernel.median)


def test_int8_and_packing_are_among_the_cases() -> None:
    sizes = {name: [c for c in all_cases(SMALL) if c.name == name] for name in ("linear", "pack")}
    assert len(kernels.select(all_cases(SMALL), ["int8"])) == len(sizes["linear"])
    if native_library() is not None:
        assert len(sizes["pack"]) == 2 * len(SMALL.linears)
    narrow = SMALL._replace(dtype=torch.bfloat16)
    assert not kernels.select(all_cases(narrow), ["pack"]), "only fp32 is packed"


def make_case(gap: float) -> kernels.Case:
    def make(seed: int) -> kernels.Call:
        x = torch.zeros(4)
        return kernels.Call(lambda: x, lambda: x + gap)

    return kernels.Case("k", "s", make, 16, 4, tolerance=0.5)


def test_a_kernel_that_is_wrong_is_found() -> None:
    assert kernels.measure(make_case(0.25), LIMITS, CPU, rounds=1).agrees
    assert not kernels.measure(make_case(1.0), LIMITS, CPU, rounds=1).agrees
    assert not kernels.measure(make_case(float("nan")), LIMITS, CPU, rounds=1).agrees


def test_inputs_exceed_the_cache_where_memory_allows() -> None:
    result = kernels.measure(make_case(0.0), LIMITS, CPU, rounds=1)
    assert (result.copies, result.beyond_cache) == (64, False)
    few = msgspec.structs.replace(LIMITS, cache_bytes=64)
    result = kernels.measure(make_case(0.0), few, CPU, rounds=1)
    assert (result.copies, result.beyond_cache) == (9, True)


def test_limits_are_the_larger_of_two_times() -> None:
    assert LIMITS.seconds(10**10, 1) == 1.0
    assert LIMITS.seconds(1, 2 * 10**11) == 2.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "measure_limits", lambda device, dtype: LIMITS)


def test_command_writes_results_and_plot(quick: None, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    bench_engine.kernel(names=["rms"], rows="1", contexts="16", device="cpu", out=tmp_path)
    written = json.loads((tmp_path / "kernels.json").read_text())
    assert {r["name"] for r in written["results"]} == {"rms_norm", "rms_norm_heads"}
    assert (tmp_path / "kernels.png").stat().st_size > 1000


def test_command_refuses_what_it_does_not_know(quick: None) -> None:
    with pytest.raises(ConfigError, match="begins with nothing"):
        bench_engine.kernel(names=["nothing"], device="cpu")
    with pytest.raises(ConfigError, match="numbers"):
        bench_engine.kernel(names=["rms"], rows="1,x", device="cpu")


def test_measured_limits_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "_MATRIX", {"cpu": 64})
    monkeypatch.setattr(roofline, "_TRIES", 1)
    monkeypatch.setattr(roofline, "_readers", lambda device, cache: {"one": (4, torch.ones(1).sum)})
    limits = roofline.measure_limits(CPU, torch.float32)
    assert limits.bytes_per_second > 0 and limits.flops_per_second > 0
    assert limits.cache_bytes >= 1 << 20
