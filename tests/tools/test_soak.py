"""A small soak: the real server, sixty mixed requests, and the verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora
from tools.demo import FAMILY, MODELS
from tools.soak import run as soak
from tools.soak.cases import WAYS, RequestWriter
from tools.soak.watch import ENOUGH_SAMPLES, Metrics, Sample, trends

AT_REST = Metrics(0, 0, 0, 0, 0, 0, 0, 0)


def build_zoo(folder: Path) -> Path:
    """The demo family if it is there, else a tiny one."""
    zoo = Zoo(folder / "zoo")
    if all((FAMILY / name).is_dir() for name in MODELS):
        for name, base in MODELS.items():
            zoo.add(name, FAMILY / name, base=base)
        return folder / "zoo"
    base = make_checkpoint(folder / "base", tokenizer=True)
    zoo.add("base", base)
    zoo.add("lora", make_lora(base, folder / "lora"), base="base")
    return folder / "zoo"


@pytest.mark.slow
def test_sixty_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKLLM_MEMORY", "128MiB")
    monkeypatch.setenv("BLOCKLLM_DTYPE", "float32")
    options = soak.Options(requests=60, concurrency=12, seed=3, minutes_limit=1)
    report, wrong = soak.run(build_zoo(tmp_path), options, tmp_path / "soak.json")
    assert wrong == []
    assert report["requests"] == 60
    assert report["greedy_answers_compared"] > 10


def test_cases_follow_from_the_seed() -> None:
    models = {"a": 128, "b": 512}
    first, again = (list(RequestWriter(5, models, 10).cases(300)) for _ in range(2))
    assert first == again
    assert {case.way for case in first} == set(WAYS)
    assert list(RequestWriter(6, models, 10).cases(300)) != first


def test_growing_memory_is_noticed() -> None:
    samples = [
        Sample(
            i * 100, i, {"server": 60_000_000, "agent": 60_000_000 + i * 500_000}, {}, {}, AT_REST
        )
        for i in range(2 * ENOUGH_SAMPLES)
    ]
    server, agent = trends(samples)
    assert server.is_flat and not agent.is_flat
    assert agent.slope_last_third == pytest.approx(5.0)
