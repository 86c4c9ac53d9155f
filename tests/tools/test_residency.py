"""Studies of models that come and go, in small: families, plans, tables and the page cache."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from blockllm.bench.client import Outcome
from blockllm.bench.metrics import report
from blockllm.bench.runner import Run
from blockllm.bench.workload import plan
from blockllm.core import Chain
from blockllm.zoo import Zoo
from tools.studies import (
    gguf_files,
    measure_churn,
    measure_cold_start,
    measure_residency,
    page_cache,
)
from tools.studies.compare_answers import Answer, differences
from tools.studies.make_many import Family, make_many, plan_models
from tools.studies.measure_cold_start import Start
from tools.studies.measure_residency import Study

SMALL = ["--layers", "4", "--hidden", "64", "--vocab", "300", "--models", "14"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("many")


@pytest.fixture(scope="module")
def family(folder: Path) -> Family:
    return make_many(folder, count=14, layers=4, hidden=64, vocab=300)


@pytest.fixture
def study(family: Family, folder: Path) -> Study:
    words = ["--family", str(folder), *SMALL, "--rate", "50", "--requests", "40"]
    return Study(family, measure_residency.parse_arguments([*words, "--budget", "5"]))


def test_forty_models_are_of_every_kind() -> None:
    models = plan_models(40)
    assert len({model.name for model in models}) == 40
    ways = [model.way for model in models]
    assert [ways.count(way) for way in ("base", "whole", "upper", "lora")] == [3, 6, 19, 12]
    assert {model.base for model in models} == {model.name for model in models[:3]}


def matrices(chain: Chain) -> set[str]:
    """Names of a model's weights but its vectors: norms of ones are equal everywhere."""
    layers = [layer for entry in chain.entries for layer in entry.block.layers]
    tensors = [tensor for layer in layers for tensor in layer.tensors.values()]
    return {tensor.hash for tensor in tensors if len(tensor.shape) == 2}


def test_siblings_share_what_they_say(family: Family) -> None:
    weights = {name: matrices(chain) for name, chain in Zoo(family.zoo).chains().items()}
    assert set(weights) == {model.name for model in family.models}
    expected = {"base": 1.0, "lora": 1.0, "upper": 23 / 30, "whole": 0.0}
    for model in family.models:
        shared = weights[model.name] & weights[model.base]
        assert len(shared) == pytest.approx(expected[model.way] * len(weights[model.name]))
    assert not weights["llama-base"] & weights["qwen2-base"]


def test_it_is_written_once(family: Family, folder: Path) -> None:
    before = (family.folder / "models.json").stat().st_mtime_ns
    again = make_many(folder, count=14, layers=4, hidden=64, vocab=300)
    assert again == family
    assert (family.folder / "models.json").stat().st_mtime_ns == before


def test_gguf_files_hold_what_the_checkpoint_holds(tmp_path: Path) -> None:
    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(5, np.float32)}
    fields: dict[str, gguf_files.Value] = {"general.architecture": "llama", "n": 3, "words": ["x"]}
    gguf_files.write(tmp_path / "one.gguf", fields, arrays)
    data = (tmp_path / "one.gguf").read_bytes()
    assert struct.unpack("<4sIQQ", data[:24]) == (b"GGUF", 3, 2, 3)
    assert data[-64:-40] == arrays["a.weight"].tobytes()
    assert data[-32:-12] == arrays["b"].tobytes()


def test_rows_of_a_llamas_queries_are_in_the_peers_order(family: Family, tmp_path: Path) -> None:
    base = next(one for one in family.models if one.name == "llama-base")
    gguf_files.write_checkpoint(family.source(base), tmp_path / "base.gguf")
    assert (tmp_path / "base.gguf").read_bytes() == family.ggufs(base)[0].read_bytes()
    config = {"model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 1}
    rows = np.arange(16, dtype=np.float32)[:, None]
    turned = gguf_files.rotated("model.layers.0.self_attn.q_proj.weight", rows, config)
    assert turned[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    kept = gguf_files.rotated("model.layers.0.self_attn.v_proj.weight", rows, config)
    assert kept is rows


def test_arms_get_equal_requests_and_few_models_get_most(study: Study) -> None:
    asked = measure_residency.workload(study.family, study.options, 3)
    times = plan(replace(asked, rate=study.rate))
    again = measure_residency.workload(study.family, study.options, 3)
    assert times == plan(replace(again, rate=study.rate))
    counts = sorted([one.model for one in times].count(name) for name in asked.models)
    assert sum(counts[-3:]) > sum(counts[:7])
    other = plan(replace(measure_residency.workload(study.family, study.options, 4), rate=1.0))
    assert other[0].prompt != times[0].prompt


def test_memory_is_that_of_so_many_models(study: Study) -> None:
    sizes = [model.nbytes for model in study.family.models]
    assert study.memory == pytest.approx(5 * sum(sizes) / len(sizes), rel=1e-6)
    assert measure_residency.stored_bytes(study.family) < sum(sizes)
    assert str(study.memory) in study.ours.launch().command
    command = study.router(7).launch().command
    assert command[command.index("--models-max") + 1] == "7"


def outcome(index: int, arrivals: list[float], error: str = "") -> Outcome:
    return Outcome(
        index, "one", "", sent=0.1 * index, arrivals=arrivals, end=arrivals[-1], error=error,
        tokens=len(arrivals),
    )  # fmt: skip


def test_the_table_has_a_column_for_each_arm() -> None:
    run = Run([outcome(0, [0.5, 0.6, 0.9]), outcome(1, [0.25, 0.5])], duration=1.0, client_cpu=0.1)
    seen = measure_residency.see(report(run), loads=3, loaded=0.5, peak=2.0)
    assert seen.worst_gap == pytest.approx(0.3)
    lines = measure_residency.table({"blockllm": [seen], "router": [seen, seen]}).splitlines()
    assert lines[0] == "| | blockllm | router |"
    assert "| models loaded meanwhile | 3 (3 to 3) | 3 (3 to 3) |" in lines


def test_cold_starts_are_compared_with_whole_models() -> None:
    found = {
        "lora": [Start(0.2, 0.1, 5_000_000, 0)],
        "whole": [Start(1.1, 0.1, 100_000_000, 0)],
    }
    lines = measure_cold_start.table({"blockllm": found}).splitlines()
    assert lines[2].endswith("| 5% | 10% |")
    assert lines[3].endswith("| 100% | 100% |")


def test_every_way_has_its_turn_in_cold_starts(family: Family) -> None:
    ways = [way for way, _ in measure_cold_start.chosen(family, 2)]
    assert ways == ["lora", "upper", "whole"] * 2


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "pack"
    file.write_bytes(bytes(300_000))
    file.read_bytes()
    before, after = page_cache.drop([file])
    assert before >= 300_000
    assert after in (0, before)  # some file systems live in memory
    (tmp_path / "empty").touch()
    assert page_cache.cached([tmp_path / "empty"]) == 0


def test_guests_replace_each_other_and_are_fine_tunes_every_tenth_time(family: Family) -> None:
    models = measure_churn.guest_models(plan_family(40))
    pairs = [measure_churn.pair_of(models, cycle) for cycle in range(20)]
    assert all(first != second for first, second in pairs)
    assert pairs[0] == pairs[1][::-1]
    assert [place for place, (first, _) in enumerate(pairs) if first.way == "upper"] == [9, 19]


def plan_family(count: int) -> Family:
    return Family(Path("nowhere"), tuple(plan_models(count)))


def test_memory_that_grows_is_seen(tmp_path: Path) -> None:
    flat = [measure_churn.Look(i, float(i), 500_000_000 + i % 3, 0) for i in range(50)]
    growing = [measure_churn.Look(i, float(i), 500_000_000 + 1_000_000 * i, 0) for i in range(50)]
    assert abs(measure_churn.grown(flat)) < 0.01 and abs(measure_churn.slope(flat)) < 0.01
    assert measure_churn.slope(growing) == pytest.approx(100)
    assert measure_churn.grown(growing) == pytest.approx(30)
    measure_churn.draw(growing, tmp_path / "new" / "churn.png")
    assert (tmp_path / "new" / "churn.png").read_bytes().startswith(b"\x89PNG")


def test_lost_requests_and_gaps_are_counted() -> None:
    looks = [measure_churn.Look(i, float(i), 500_000_000, 0) for i in range(10)]
    good, lost = outcome(0, [0.1, 0.2, 0.6]), outcome(1, [0.1], "cut")
    operations = {"add": [0.1], "replace": [0.2], "remove": [0.01]}
    seen = measure_churn.Churn([good], [good, lost], [good], ["x: cut"], looks, operations)
    lines = measure_churn.table(seen, 0.5).splitlines()
    assert "| requests lost | 1 |" in lines
    assert "| worst gap, ms (limit 600) | 400 (p99 397) |" in lines


def test_an_answer_with_another_token_is_named_with_its_margin() -> None:
    own = {"a": Answer([1, 2, 3], [0.5, 0.4, 0.3]), "b": Answer([1, 2, 3], [0.5, 2e-4, 0.3])}
    found = differences(own, {"a": [1, 2, 3], "b": [1, 9, 3]})
    assert found == [("b", 1, 2e-4)]
