"""A folder without a zoo: reading says so and writes nothing, nor does a refused first add."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from blockllm.cli.main import app
from blockllm.errors import BlockllmError, CheckpointError, UnknownModel, ZooError
from blockllm.zoo import Zoo
from tests.makers import make_lora

TEXT = "a text to measure on"


@pytest.mark.parametrize(
    "command",
    [
        "zoo ls",
        "zoo show model",
        "zoo verify",
        "zoo gc",
        "zoo rm model",
        "zoo report page.html",
        "zoo measure model --against other --text text.txt",
        "zoo profile",
        "zoo equivalent a b --text text.txt",
        "zoo stitch a@1 b@1 --name c --text text.txt",
        "zoo surrogate model --ratio 0.5 --text text.txt",
        "zoo add model folder --share delta --base b --text text.txt",
        "serve",
        "serve model",
        "chat model --prompt hello",
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_commands_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, is_there: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    if is_there:
        (tmp_path / "typo").mkdir()
    before = sorted(tmp_path.rglob("*"))
    result = CliRunner().invoke(app, [*command.split(), "--zoo", "typo"])
    assert isinstance(result.exception, BlockllmError)
    assert "no zoo at" in str(result.exception)
    assert ("is empty" if is_there else "does not exist") in str(result.exception)
    assert "blockllm zoo add NAME" in str(result.exception)
    assert sorted(tmp_path.rglob("*")) == before


READERS: list[Callable[[Zoo], Any]] = [
    Zoo.cards,
    Zoo.chains,
    Zoo.verify,
    Zoo.gc,
    lambda zoo: zoo.card("model"),
    lambda zoo: zoo.remove("model"),
    lambda zoo: zoo.asset("model", "tokenizer.json"),
    lambda zoo: zoo.findings("kind", dict),  # type: ignore[type-var]
    lambda zoo: zoo.assemble("new", "model", []),
]


@pytest.mark.parametrize("read", READERS)
def test_methods_write_nothing(tmp_path: Path, read: Callable[[Zoo], Any]) -> None:
    zoo = Zoo(tmp_path / "deep" / "zoo")
    with pytest.raises(ZooError, match="no zoo at"):
        read(zoo)
    assert list(tmp_path.iterdir()) == []


def test_a_zoo_whose_models_are_removed_is_still_one(tmp_path: Path, tied: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("model", tied)
    zoo.remove("model")
    assert Zoo(tmp_path / "zoo").cards() == []


def test_a_refused_first_add_leaves_nothing(tmp_path: Path, tied: Path) -> None:
    adapter = make_lora(tied, tmp_path / "adapter")
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.iterdir())
    zoo = Zoo(tmp_path / "deep" / "zoo")
    for source, name in ((adapter, "adapter"), (tmp_path / "nowhere", "model"), (tied, "bad name")):
        with pytest.raises(ZooError):
            zoo.add(name, source)
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ZooError):
        Zoo(tmp_path / "empty").add("adapter", adapter)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_first_add_that_fails_half_way_leaves_nothing(tmp_path: Path, tied: Path) -> None:
    def stop(activity: str, done: int, total: int) -> None:
        if done:
            raise CheckpointError("stopped")

    with pytest.raises(CheckpointError, match="stopped"):
        Zoo(tmp_path / "zoo").add("model", tied, progress=stop)
    assert not (tmp_path / "zoo").exists()


def test_a_failing_first_add_takes_nothing_from_others(tmp_path: Path, tied: Path) -> None:
    """Adds that are refused make and remove the zoo while others make it too and keep it."""
    adapter = make_lora(tied, tmp_path / "adapter")
    failures: list[ZooError] = []

    def refuse() -> None:
        for _ in range(10):
            try:
                Zoo(tmp_path / "zoo").add("adapter", adapter, base="absent")
            except UnknownModel:
                continue
            except ZooError as error:
                failures.append(error)

    thread = threading.Thread(target=refuse)
    thread.start()
    Zoo(tmp_path / "zoo").add("model", tied)
    thread.join()
    assert failures == []
    assert Zoo(tmp_path / "zoo").verify().is_sound
    assert [card.name for card in Zoo(tmp_path / "zoo").cards()] == ["model"]
