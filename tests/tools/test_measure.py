"""The measurements on a tiny family: equal tokens, counters that add up, tables that print."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from blockllm.config import EngineSettings
from blockllm.zoo import Zoo
from tools.studies import (
    measure_block_limits,
    measure_fairness,
    measure_lanes,
    measure_layered,
    measure_loading,
    measure_sharing,
    measure_transformers,
)
from tools.studies.bench_family import Shape, make_family
from tools.studies.drive import ratio_table


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    make_family(folder, Shape(layers=4, hidden=128, vocab=400), 2, 1, changed_from_layer=3)
    zoo = Zoo(folder / "zoo")
    for name in ("base", "ft0", "ft1"):
        zoo.add(name, folder / name)
    zoo.add("lora0", folder / "lora0", base="base")
    return folder


def test_sharing(family: Path) -> None:
    settings = EngineSettings(device="cpu", dtype="float32", memory="32MiB", prefix_cache=False)
    options = argparse.Namespace(requests=4, prompt=10, output=4, pairs=2)
    seen = measure_sharing.measure(Zoo(family / "zoo"), settings, options)
    assert seen["models_asked"] == ["ft0", "ft1", "lora0", "base"]
    assert seen["requests_that_differ"] == 0
    assert seen["weight_bytes"] < seen["weight_bytes_unshared"] / 2
    rows_per_request = 10 + 4 - 1
    for span in seen["spans"]:
        assert span["rows"] == 2 * span["models"] * rows_per_request
    assert sum(span["hops"] for span in seen["spans"]) < seen["hops_in_turn"]
    assert "rows per hop, 1 spans shared by 2" in measure_sharing.markdown(seen)


def test_fairness(family: Path) -> None:
    options = argparse.Namespace(
        zoo=family / "zoo", model="base", memory="64MiB", lights=2, rate=2.0, prompt=8, answer=6,
        heavy_prompt=96, quota=3, rows=48, sequences=16, turn_seconds=0.0, turn_cost="20,0.5",
        backlog=60, seconds=3.0, pairs=1,
    )  # fmt: skip
    found = measure_fairness.compare(measure_fairness.Study(options), options.pairs)
    slower = {}
    for arm, runs in found["felt"].items():
        slower[arm] = runs["with"][0]["whole_p95"] / runs["without"][0]["whole_p95"]
    assert slower["quota"] < slower["fair"] < slower["order"]
    assert slower["quota"] < 1.3
    by_counters, in_order = (found["backlog"][arm][0]["jain"] for arm in ("fair", "order"))
    assert in_order < 0.7 and by_counters > 0.8
    assert "Jain's index" in measure_fairness.table(found)


def test_transformers(family: Path) -> None:
    pytest.importorskip("transformers")
    options = argparse.Namespace(
        model=family / "base",
        zoo=family / "zoo",
        name="base",
        concurrency=3,
        prompt=10,
        output=4,
        pairs=1,
        memory="32MiB",
        threads=1,
    )
    seen = measure_transformers.measure(options)
    assert (seen["answers_that_differ"], seen["answers_compared"]) == (0, 6)
    assert "limit of the machine" in measure_transformers.markdown(seen)


def test_loading_and_copying_move_the_same_tensors(family: Path) -> None:
    zoo = Zoo(family / "zoo")
    chain = zoo.chain("ft0")
    copied = measure_loading.copied_tensors(chain)
    layers = [layer for entry in chain.entries for layer in entry.block.layers]
    embedding = layers[0].tensors["weight"]
    everything = {t.hash: t.nbytes for layer in layers for t in layer.tensors.values()}
    total = sum(t.nbytes for t in copied)
    assert total == sum(everything.values()) - embedding.nbytes
    seen = {}
    for kind in measure_loading.KINDS:
        one = measure_loading.measure_one(zoo, "ft0", kind)
        assert one["bytes"] == total
        assert one["seconds"] > 0
        seen[kind] = [one]
    table = measure_loading.markdown({"seen": seen, "ready": [3.0]})
    assert "loading / copying huge" in table


def test_limits_of_blocks_and_of_the_turn(family: Path) -> None:
    arms = ["--arms", "turn,turn:64,3"]
    load = ["--rounds", "2", "--requests", "6", "--rate", "500", "--prompt", "20", "--output", "4"]
    memory = ["--memory", "32MiB", "--zoo", str(family / "zoo")]
    options = measure_block_limits.parse_arguments([*arms, *load, *memory])
    found = measure_block_limits.compare(options, measure_block_limits.open_engines(options))
    assert [len(runs) for runs in found.values()] == [2, 2, 2]
    assert all(seen.rows_per_hop_hottest <= 3 for seen in found["3"])
    assert all(seen.rows_per_hop_hottest > 3 for seen in found["turn"])
    assert "| turn | turn:64 / turn | 3 / turn |" in ratio_table(found)
    options.arms = "auto"
    with pytest.raises(SystemExit, match="no profiles"):
        measure_block_limits.open_engines(options)


def test_layered(family: Path, tmp_path: Path) -> None:
    load = "--rows 16 --decoding 2 --answer 12 --prompts 2 --prompt 40 --before 0 --every 0.01"
    common = ["--zoo", str(family / "zoo"), "--memory", "16MiB", "--pairs", "1"]
    options = measure_layered.parse_arguments([*common, *load.split(), "--out", str(tmp_path)])
    found = measure_layered.compare(options)
    assert found["layered"][0].hops > found["blocks"][0].hops
    assert "| hops |" in ratio_table(found)


def test_lanes(family: Path) -> None:
    common = ["--zoo", str(family / "zoo"), "--memory", "32MiB", "--threads", "2", "--pairs", "1"]
    options = measure_lanes.parse_arguments([*common, "--rates", "200", "--requests", "3"])
    report = measure_lanes.compare(options)
    assert report["handed_over"] >= 9 and report["kv_bytes_copied"] == 0
    assert "| 200 | lanes |" in measure_lanes.table(report)
