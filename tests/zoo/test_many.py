"""`zoo add --all`: every model of a folder, bases first; what is refused stops nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockllm.cli.zoo import app
from blockllm.errors import CheckpointError, ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.many import add_all
from tests.makers import make_lora

Run = Callable[..., str]


@pytest.fixture
def folder(tmp_path: Path, tied: Path) -> Path:
    """An adapter, its base, a folder that is refused, and folders without models."""
    root = tmp_path / "models"
    shutil.copytree(tied, root / "the-base")
    make_lora(root / "the-base", root / "an-adapter")
    (root / "broken").mkdir()
    (root / "broken" / "weights.gguf").write_bytes(b"GGUF")
    for name in ("logs", ".cache"):
        (root / name).mkdir()
        (root / name / "run.txt").write_text("")
    (root / ".cache" / "config.json").write_text("{}")
    (root / "README.md").write_text("")
    return root


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(*words: str | Path, status: int = 0) -> str:
        line = ["add", *map(str, words), "--zoo", str(tmp_path / "zoo")]
        result = CliRunner().invoke(app, line)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result.output

    return command


def test_bases_come_first_and_a_refusal_stops_nothing(run: Run, zoo: Zoo, folder: Path) -> None:
    lines = run("--all", folder, status=1).splitlines()
    starts = [line.split(":")[0] for line in lines if not line.startswith(" ")]
    assert starts[:3] == ["refused broken", "added the-base", "added an-adapter"]
    assert "GGUF" in lines[0]
    assert lines[-1].startswith("added 2, kept 0, refused 1; stored ")
    assert [card.name for card in zoo.cards()] == ["the-base", "an-adapter"]
    assert zoo.card("an-adapter").parent == "the-base"


def test_again_only_what_is_new_is_added(run: Run, zoo: Zoo, folder: Path) -> None:
    shutil.rmtree(folder / "broken")
    run("--all", folder)
    make_lora(folder / "the-base", folder / "later", seed=2)
    text = run("--all", folder)
    assert "kept the-base: added from this folder before" in text
    assert "added 1, kept 2, refused 0" in text
    assert zoo.card("later").parent == "the-base"


def test_a_name_taken_by_another_folder_is_refused(
    run: Run, zoo: Zoo, folder: Path, llama: Path
) -> None:
    zoo.add("the-base", llama)
    found = json.loads(run("--all", folder, "--json", status=1))
    refused = {outcome["name"]: outcome["refused"] for outcome in found}
    assert "a model named 'the-base' already" in refused["the-base"]
    assert zoo.card("the-base").root == str(llama)


def test_options(run: Run, zoo: Zoo, folder: Path) -> None:
    shutil.rmtree(folder / "broken")
    zoo.add("other", folder / "the-base")
    found = json.loads(run("--all", folder, "--base", "other", "--format", "int8", "--json"))
    assert [outcome["report"]["name"] for outcome in found] == ["the-base", "an-adapter"]
    assert zoo.card("an-adapter").parent == "other"
    assert zoo.card("the-base").format == "int8"


@pytest.mark.parametrize("words", [["name"], ["name", "path"], ["--scale", "2"], ["--max-kl", "1"]])
def test_what_does_not_go_with_all(run: Run, folder: Path, words: list[str]) -> None:
    with pytest.raises(ZooError, match="--all takes"):
        run(*words, "--all", folder)
    assert "give a name and a path" in run("name", status=2)


def test_nothing_to_add(zoo: Zoo, tied: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for source, match in (
        (tmp_path / "empty", "no subfolder holds a model"),
        (tmp_path / "nowhere", "no folder"),
        (tied, "holds one model itself"),
    ):
        with pytest.raises(CheckpointError, match=match):
            list(add_all(zoo, source))
    assert not zoo.exists()
