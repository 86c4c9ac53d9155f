"""`zoo equivalent` on the demo family, as typed; a random model of the same shape is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from typer.testing import CliRunner

from blockllm.cli.zoo import app
from blockllm.offline.equivalence.evidence import Edge, Findings
from blockllm.offline.equivalence.find import KIND
from blockllm.zoo import Zoo
from tests.makers import make_model
from tools.demo import FAMILY

OPTIONS = ("--window", "256", "--tokens", "256")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base, frozen-lower, full, and `stranger`: their shape and tokenizer, random weights."""
    folder = tmp_path_factory.mktemp("equivalent")
    zoo = Zoo(folder / "zoo")
    for name in ("base", "frozen-lower", "full"):
        zoo.add(name, FAMILY / name)
    config = json.loads((FAMILY / "base" / "config.json").read_text(encoding="utf-8"))
    shape = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    shape += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    kept = {key: config[key] for key in (*shape, "tie_word_embeddings")}
    make_model(seed=3, **kept).save_pretrained(folder / "stranger")
    shutil.copy(FAMILY / "base" / "tokenizer.json", folder / "stranger")
    zoo.add("stranger", folder / "stranger")
    return folder / "zoo"


def run(zoo: Path, *words: str) -> dict[str, Any]:
    words = ("equivalent", *words, "--zoo", str(zoo), "--json", *OPTIONS)
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def text(domain: str, model: str = "") -> str:
    return f"--text={model and model + '='}{FAMILY / 'heldout' / domain}.txt"


def test_fine_tunes_share_what_the_budget_allows(zoo: Path) -> None:
    words = ("base", "frozen-lower", "full", text("general"), text("topics", "frozen-lower"))
    words += (text("network", "full"), "--max-kl", "0.02")
    printed = run(zoo, *words, "--assemble", "thin")
    findings = msgspec.convert(printed["findings"], Findings)
    plan = findings.plan
    print(plan)
    assert plan.swaps and 0 < plan.saved_bytes < plan.total_bytes
    assert all(quality.kl <= 0.02 for quality in plan.quality.values())
    shared = [e.quality for e in findings.edges if str(e.swap.old_site) == "base.3"]
    assert [quality.keys() for quality in shared] == [{"base", "frozen-lower"}]
    made = {m["reference"]: m for m in printed["assembled"]}
    assert made.keys() == plan.quality.keys()
    for reference, measurement in made.items():
        assert measurement["kl"] == pytest.approx(plan.quality[reference].kl, rel=0.01)
    kept = Zoo(zoo).findings(KIND, Edge)
    assert set(plan.mapping.items()) <= set(kept)


def test_a_stranger_is_refused(zoo: Path, tmp_path: Path) -> None:
    """By the weights alone, and by the swap test where they are not asked."""
    words = ("base", "stranger", text("general"), "--max-kl", "0.1")
    assert not any(edge["quality"] for edge in run(zoo, *words)["findings"]["edges"])
    found = run(zoo, *words, "--threshold=-1", "--out", str(tmp_path))["findings"]
    qualities = [quality for edge in found["edges"] for quality in edge["quality"].values()]
    assert len(qualities) == 14 and min(quality["kl"] for quality in qualities) > 0.1
    assert found["plan"]["swaps"] == []
    assert json.loads((tmp_path / "equivalence.json").read_bytes()) == found
    for ending in ("png", "svg"):
        assert (tmp_path / f"base-stranger.{ending}").stat().st_size > 10_000
