"""The zoo of all kinds in small: what is shared, what is lost, and equal answers in company."""

from __future__ import annotations

from typing import Any

import pytest

from tools.studies import measure_zoo

CHOSEN = ("base", "lora-a", "ia3", "prompt", "lora-on-lora", "base-int8")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    chosen = [one for one in measure_zoo.variants() if one.name in CHOSEN]
    return measure_zoo.measure(tmp_path_factory.mktemp("kinds") / "zoo", chosen, limit=1)


def test_there_are_a_base_and_24_variants_of_other_names() -> None:
    names = [one.name for one in measure_zoo.variants()]
    assert len(set(names)) == len(names) == 25
    for place, one in enumerate(measure_zoo.variants()):
        assert {one.base, one.twin} - {None} <= set(names[:place])


def test_it_measures(seen: dict[str, Any]) -> None:
    rows = {row["model"]: row for row in seen["models"]}
    assert tuple(rows) == CHOSEN
    assert measure_zoo.is_sound(seen)
    assert seen["disk_bytes"] < seen["disk_bytes_files"] < seen["disk_bytes_separate"] / 2
    assert seen["disk_bytes"] >= sum(row["stored_bytes"] for row in rows.values())
    assert 2 * seen["mixed"]["weight_bytes"] < seen["mixed"]["weight_bytes_unshared"]
    assert 2 * seen["mixed"]["hops_mixed"] < seen["mixed"]["hops_alone"]
    assert [name for name, row in rows.items() if not row["exact"]] == ["base-int8"]
    assert rows["base-int8"]["kl"] > 0
    assert rows["ia3"]["stored_bytes"] < 0.01 * rows["ia3"]["total_bytes"]
    scores = [row["perplexity"] for row in rows.values()]
    assert len(set(scores)) == len(scores)


def test_the_table_names_every_model(seen: dict[str, Any]) -> None:
    table = measure_zoo.markdown(seen)
    assert all(f"`{name}`" in table for name in CHOSEN)


def test_a_drift_or_another_answer_fails(seen: dict[str, Any]) -> None:
    drifted = [{**row, "difference": 0.01} for row in seen["models"]]
    assert not measure_zoo.is_sound({**seen, "models": drifted})
    mixed = {**seen["mixed"], "models_that_differ": ["ia3"]}
    assert not measure_zoo.is_sound({**seen, "mixed": mixed})
