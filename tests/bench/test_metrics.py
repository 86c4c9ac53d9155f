"""Metrics against numbers worked out by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.bench.client import Outcome
from blockllm.bench.metrics import Slo, SoloTimes, jain, parse_slo, report, spread
from blockllm.bench.runner import Run
from blockllm.errors import ConfigError


def outcome(index: int, arrivals: list[float], tokens: int, **more: object) -> Outcome:
    values: dict[str, object] = {"model": "m", "tenant": "", "sent": 0.0, "prompt_tokens": 10}
    values |= {"end": arrivals[-1] if arrivals else 1.0, "asked": tokens}
    return Outcome(index=index, arrivals=arrivals, tokens=tokens, **{**values, **more})  # type: ignore[arg-type]


# 5 tokens in 3 chunks; 2 tokens; one failed after its first token
RUN = Run(
    [
        outcome(0, [0.5, 0.7, 1.3], 5, tenant="x"),
        outcome(1, [0.3, 0.5], 2, tenant="y", model="n", asked=4),
        outcome(2, [0.1], 1, tenant="y", error="cut"),
    ],
    duration=2.0,
    client_cpu=0.016,
)


def test_latencies_by_hand() -> None:
    total = report(RUN).total
    assert total.ttft and total.tpot and total.itl and total.e2e
    assert (total.ttft.count, total.ttft.mean, total.ttft.max) == (2, pytest.approx(0.4), 0.5)
    assert total.ttft.p50 == pytest.approx(0.4) and total.ttft.p95 == pytest.approx(0.49)
    assert total.tpot.mean == pytest.approx((0.8 / 4 + 0.2 / 1) / 2)
    assert total.itl.count == 3 and total.itl.max == pytest.approx(0.6)
    assert total.e2e.mean == pytest.approx(0.9)


def test_throughput_counts_what_succeeded() -> None:
    found = report(RUN)
    assert found.total.output_tokens_per_second == pytest.approx(7 / 2)
    assert found.total.requests_per_second == 1
    assert found.total.failed == {"cut": 1} and found.total.short == 1
    assert found.total.prompt_tokens == 20
    assert found.client_cpu_ms_per_token == pytest.approx(2.0)


def test_parts_are_per_model_and_tenant() -> None:
    found = report(RUN)
    assert {name: part.requests for name, part in found.models.items()} == {"m": 2, "n": 1}
    assert found.tenants["y"].failed == {"cut": 1} and found.tenants["x"].failed == {}
    # tokens per second of a request: 5 / 1.3 and 2 / 0.5
    assert found.fairness == pytest.approx(jain([5 / 1.3, 4.0]))


def test_goodput_needs_every_limit() -> None:
    def goodput(slo: Slo) -> tuple[float | None, float | None]:
        total = report(RUN, slo).total
        return total.attainment, total.goodput

    assert goodput(Slo(ttft=0.4)) == (pytest.approx(1 / 3), 0.5)
    assert goodput(Slo(ttft=0.5, tpot=0.2 + 1e-9)) == (pytest.approx(2 / 3), 1.0)
    assert goodput(Slo(ttft=0.5, e2e=0.2)) == (0.0, 0.0)
    assert report(RUN).total.goodput is None


def test_slowdown_is_against_the_same_request_alone() -> None:
    alone = Run([outcome(i, [0.2, 0.3], 2, prompt_tokens=20) for i in range(3)], 1.0, 0.0)
    solo = SoloTimes(alone)
    one = outcome(0, [0.5, 1.8], 5)  # alone: 0.2 * 10 / 20 + 4 * 0.1 = 0.5
    assert solo.of(one) == pytest.approx(0.5)
    slowdown = report(Run([one], 2.0, 0.0), None, solo).total.slowdown
    assert slowdown and slowdown.p50 == pytest.approx(1.8 / 0.5)
    with pytest.raises(ConfigError, match="timeout"):
        SoloTimes(Run([outcome(0, [], 0, error="timeout")], 1.0, 0.0))


def test_one_token_has_no_time_per_token() -> None:
    total = report(Run([outcome(0, [0.2], 1)], 1.0, 0.0)).total
    assert total.tpot is None and total.itl is None and total.ttft


def test_jain_by_hand() -> None:
    assert jain([2.0, 2.0, 2.0]) == pytest.approx(1)
    assert jain([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    assert jain([1.0, 3.0]) == pytest.approx(0.8)


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=20))
def test_jain_stays_between_one_share_and_one(values: list[float]) -> None:
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=30))
def test_percentiles_are_ordered(values: list[float]) -> None:
    found = spread(values)
    assert found and min(values) <= found.p50 <= found.p95 <= found.p99 <= found.max == max(values)


def test_slo_text() -> None:
    assert parse_slo("ttft=0.5, tpot=0.1") == Slo(ttft=0.5, tpot=0.1)
    for wrong in ("ttft", "ttft=fast", "itl=1"):
        with pytest.raises(ConfigError, match="slo"):
            parse_slo(wrong)
