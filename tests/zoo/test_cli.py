"""`blockllm zoo …`, as typed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from typer.testing import CliRunner

from blockllm.cli.zoo import app
from blockllm.errors import NameTaken, UnknownModel, ZooError
from tests.makers import make_checkpoint, make_lora


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command on a zoo of its own; returns what it printed."""
    monkeypatch.setenv("BLOCKLLM_ZOO", str(tmp_path / "zoo"))

    def command(*words: str | Path, status: int = 0) -> str:
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.output

    return command


def test_a_life(run: Any, tmp_path: Path, llama: Path) -> None:
    sibling = make_checkpoint(
        tmp_path / "sibling", seed=1, copy_layers_from=llama, copied_layers=(0, 1)
    )
    adapter = make_lora(llama, tmp_path / "adapter")
    own = {"temperature": 0.6, "top_k": 20, "top_p": "all", "eos_token_id": [7, 200]}
    (adapter / "generation_config.json").write_text(json.dumps(own))
    assert "0 of 3 blocks shared" in run("add", "base", llama)
    report = json.loads(run("add", "sibling", sibling, "--json"))
    assert (report["name"], report["num_shared_blocks"]) == ("sibling", 3)
    said = run("add", "adapter", adapter, "--base", "base")
    assert "end token 200 is none of the model's tokens" in said
    assert "generation_config.json: top_p: got 'all'" in said
    cards = json.loads(run("ls", "--json"))
    assert [card["name"] for card in cards] == ["base", "sibling", "adapter"]
    listed = run("ls")
    assert "sibling" in listed
    assert re.fullmatch(r"3 models, .+; sharing saves .+, .+ are on disk", listed.splitlines()[-1])
    text = run("show", "adapter")
    assert "lora on base" in text
    assert "ends at 7, 2; its own defaults: temperature 0.6, top_k 20" in text
    assert "ends at 2; its own defaults: none" in run("show", "base")
    assert "self_attn.q_proj, self_attn.v_proj" in text
    shown = json.loads(run("show", "adapter", "--json"))
    assert shown["model"]["parent"] == "base"
    assert (shown["ends"], shown["sampling"]) == ([7, 2], {"temperature": 0.6, "top_k": 20})
    assert shown["chain"][0]["shared_with"] == ["base", "sibling"]
    assert [row["num_layers"] for row in shown["chain"]] == [1, 2, 2, 1]
    assert "sound" in run("verify")
    assert json.loads(run("rm", "sibling", "--json")) == {"removed": "sibling"}
    assert "removed adapter" in run("rm", "adapter")
    assert json.loads(run("gc", "--json"))["num_files"] > 0
    assert "removed 0 files" in run("gc")
    run("rm", "base")
    assert "no models" in run("ls")


def test_an_adapter_on_an_adapter(run: Any, tmp_path: Path, llama: Path) -> None:
    adapter = make_lora(llama, tmp_path / "adapter")
    run("add", "base", llama)
    run("add", "one", adapter, "--base", "base")
    run("add", "two", adapter, "--base", "one", "--scale", "0.5")
    assert "stack on one" in run("show", "two")
    with pytest.raises(ZooError, match="finite number"):
        run("add", "three", adapter, "--base", "one", "--scale", "nan")


def test_zoo_option(run: Any, tmp_path: Path, llama: Path) -> None:
    run("add", "model", llama, "--zoo", tmp_path / "other")
    with pytest.raises(ZooError, match="no zoo at"):
        run("ls")
    assert len(json.loads(run("ls", "--json", "--zoo", tmp_path / "other"))) == 1


def test_damage_is_an_exit_status(run: Any, tmp_path: Path, llama: Path) -> None:
    run("add", "model", llama)
    next((tmp_path / "zoo").rglob("*.pack")).unlink()
    assert "needed by model" in run("verify", status=1)
    report = json.loads(run("verify", "--json", status=1))
    assert report["problems"][0]["models"] == ["model"]


def test_int8_is_shown(run: Any, llama: Path) -> None:
    run("add", "exact", llama)
    run("add", "small", llama, "--format", "int8")
    exact, small = json.loads(run("ls", "--json"))
    assert (exact["format"], small["format"], small["exact"]) == ("float32", "int8", False)
    assert small["total_bytes"] < exact["total_bytes"]
    assert "int8" in run("ls")
    text = run("show", "small")
    assert "int8 (lossy, made from float32)" in text
    assert "loss not measured" in text
    assert "loss" not in run("show", "exact")


def test_measure(run: Any, tmp_path: Path, llama: Path) -> None:
    other = make_checkpoint(tmp_path / "other", seed=1, tokenizer=True)
    bare = make_checkpoint(tmp_path / "bare", seed=2)
    text = tmp_path / "text"
    text.write_bytes(bytes(range(0x28, 0x58)) * 5)  # the tiny tokenizer has few letters
    for name, path in (("base", llama), ("other", other), ("bare", bare)):
        run("add", name, path)
    words = ("measure", "other", "--against", "base", "--text", text, "--window", 64)
    report = json.loads(run(*words, "--json"))
    made = report["measurement"]
    assert (made["model"], made["reference"], made["window"]) == ("other", "base", 64)
    assert made["text"] == blake3(text.read_bytes()).hexdigest()
    assert report["rise"] == made["perplexity"] / made["reference_perplexity"] - 1
    assert made["num_tokens"] > 100 and made["kl"] > 0
    assert report["passed"]
    shown = json.loads(run("show", "other", "--json"))["model"]["loss"]
    assert shown == [made]
    assert "against base: perplexity" in run("show", "other")
    # the gate: refused by status, and kept all the same
    limit = 100 * report["rise"]
    assert "same first choice" in run(*words, "--max-rise", f"{limit + 0.1}%")
    assert "the perplexity rises by" in run(
        *words, "--max-rise", f"{limit / 100 - 0.001}", status=1
    )
    with pytest.raises(ZooError, match="came without tokenizer"):
        run("measure", "other", "--against", "bare", "--text", text)
    with pytest.raises(ZooError, match="came without"):
        run("measure", "bare", "--against", "base", "--text", text)
    with pytest.raises(ZooError, match="--max-rise"):
        run(*words, "--max-rise", "little")


def test_errors_are_ours(run: Any, llama: Path) -> None:
    run("add", "model", llama)
    with pytest.raises(NameTaken):
        run("add", "model", llama)
    with pytest.raises(UnknownModel):
        run("show", "nobody")


@pytest.mark.parametrize("command", ["add", "ls", "show", "measure", "rm", "verify", "gc"])
def test_help(run: Any, command: str) -> None:
    text = run(command, "--help")
    assert "--zoo" in text
    assert "--json" in text
