"""The performance page is what the results files say, and its prose claims no number of its own."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tools.pages import performance_page
from tools.pages.performance_page import CLAIMS, PAGE, RESULTS, number, page

TEXT = CLAIMS.read_text(encoding="utf-8")
# a figure with a unit that only measuring gives; sizes of configurations are in GiB
MEASURED = re.compile(r"\d[\d.,]*\s?(?:tokens/s|GB/s|%|ms|s|x|MB|MiB|GFLOP/s)(?![\w/])")


@pytest.fixture
def claims() -> dict[str, Any]:
    return tomllib.loads(TEXT)


def test_the_committed_page_is_what_the_tool_writes(claims: dict[str, Any]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(claims), (
        "run python -m tools.pages.performance_page"
    )


def test_every_results_file_carries_a_claim(claims: dict[str, Any]) -> None:
    rows = [row for claim in claims["claim"] for row in claim["row"]]
    used = {row["results"] for row in rows if "results" in row}
    used |= {f"{row['facts']}.json" for row in rows if "facts" in row}
    assert used == {path.name for path in RESULTS.iterdir()}


def test_prose_states_no_measurement(claims: dict[str, Any]) -> None:
    texts = [claims["text"], claims["limits"], *(claim["text"] for claim in claims["claim"])]
    assert [found for text in texts for found in MEASURED.findall(text)] == []


def test_facts_say_where_they_come_from() -> None:
    for path in RESULTS.glob("*.json"):
        facts = json.loads(path.read_text(encoding="utf-8"))
        assert set(facts) == {"date", "machine", "command", "origin", "facts"}, path
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts["date"]), path


def _results(runs: list[tuple[int, str, float]]) -> dict[str, Any]:
    return {
        "name": "made up",
        "machine": {"processor": "abacus", "time": "2026-01-02T03:04:05Z"},
        "runs": [
            {
                "load": "all",
                "pair": pair,
                "arm": arm,
                "report": {"total": {"output_tokens_per_second": value}},
            }
            for pair, arm, value in runs
        ],
    }


def test_ratios_are_taken_within_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(performance_page, "RESULTS", tmp_path)
    runs = [(0, "a", 10.0), (0, "b", 5.0), (1, "a", 40.0), (1, "b", 10.0), (2, "b", 1.0)]
    (tmp_path / "run").mkdir()
    (tmp_path / "run/results.json").write_text(json.dumps(_results([*runs, (2, "a", 3.0)])))
    row = {"what": "it", "results": "run", "load": "all", "ours": "a", "theirs": "b"}
    claim = {"title": "t", "text": "x", "command": "c", "row": [row | {"measures": ["tokens/s"]}]}
    machine = {"name": "A", "processor": "abacus", "text": "beads"}
    text = page({"text": "t", "limits": "l", "machine": [machine], "claim": [claim]})
    assert "| it: tokens/s | 10.0 | 5.00 | **3.00** (2.00 to 4.00) | A | [2026-01-02]" in text


def test_an_arm_that_no_run_has_is_refused(claims: dict[str, Any]) -> None:
    claims["claim"][0]["row"][0]["ours"] = "nothing"
    with pytest.raises(SystemExit, match="no runs of 'nothing'"):
        page(claims)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.594, "0.59"), (9.999, "10.0"), (21.06, "21.1"), (1093.4, "1,093")]
)
def test_figures_have_three_digits(value: float, shown: str) -> None:
    assert number(value) == shown
