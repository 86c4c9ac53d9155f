"""The demo family's full fine-tune as a delta: a fifth of its bytes, at most a percent lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockllm.cli.main import app
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.zoo import Zoo
from tools.demo import FAMILY

pytestmark = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")
TEXT = FAMILY / "heldout" / "network.txt"  # what `full` was tuned for


def test_a_fifth_of_the_bytes_costs_at_most_a_percent(tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("base", FAMILY / "base")
    command = ["zoo", "add", "full", str(FAMILY / "full"), "--zoo", str(tmp_path / "zoo")]
    command += ["--base", "base", "--share", "delta", "--text", str(TEXT), "--max-bytes", "20%"]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.exception
    made = json.loads(result.output)
    (loss,) = zoo.card("full").loss
    print(made["nbytes"], loss)
    assert zoo.card("full").own_bytes == made["nbytes"] <= 0.2 * made["checkpoint_bytes"]
    assert loss.num_tokens > 4000
    assert loss.rise <= 0.01
    assert 0 < loss.kl <= 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["zoo"]
