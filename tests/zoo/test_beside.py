"""Adding beside others: a folder that is slow or stuck stops nothing but its own adding."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from blockllm.errors import NameTaken, UnknownModel, ZooError
from blockllm.zoo import Zoo, ingest
from tests.makers import make_checkpoint, make_lora

SECONDS = 30


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    path = tmp_path_factory.mktemp("sibling")
    return make_checkpoint(path, seed=1, copy_layers_from=llama, copied_layers=(0, 1))


class Adding:
    """An add in a thread, which stands still at its first weights while the body runs."""

    def __init__(self, zoo: Zoo, name: str, source: Path, base: str | None = None) -> None:
        self.errors: list[Exception] = []
        self.started = threading.Event()
        self.go = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(zoo, name, source, base))

    def __enter__(self) -> Adding:
        self._thread.start()
        assert self.started.wait(SECONDS)
        return self

    def __exit__(self, *arguments: object) -> None:
        self.go.set()
        self._thread.join(SECONDS)
        assert not self._thread.is_alive()

    def _run(self, zoo: Zoo, name: str, source: Path, base: str | None) -> None:
        try:
            zoo.add(name, source, base, progress=self._wait)
        except ZooError as error:
            self.errors.append(error)

    def _wait(self, activity: str, done: int, total: int) -> None:
        if activity == "reading" and not self.started.is_set():
            self.started.set()
            assert self.go.wait(SECONDS)


def test_others_go_on_while_a_folder_is_stuck(zoo: Zoo, tied: Path, sibling: Path, llama: Path):
    zoo.add("first", tied)
    with Adding(zoo, "slow", sibling) as adding:
        zoo.add("other", llama)
        zoo.remove("first")
        assert zoo.gc().num_files > 0
        assert [card.name for card in zoo.cards()] == ["other"]
        assert zoo.verify().is_sound
    assert not adding.errors
    assert {card.name: card.own_bytes > 0 for card in zoo.cards()} == {"other": True, "slow": True}
    assert zoo.card("slow").shared_bytes > 0
    assert zoo.verify().is_sound
    assert not list(zoo.pack_path("x").parents[2].glob("tmp/*"))


def test_what_was_shared_may_go_meanwhile(zoo: Zoo, tmp_path: Path, sibling: Path, llama: Path):
    zoo.add("kept", make_checkpoint(tmp_path / "kept", seed=5, num_hidden_layers=1))
    zoo.add("base", llama)
    with Adding(zoo, "slow", sibling) as adding:
        zoo.remove("base")
        zoo.gc()
    assert not adding.errors
    assert zoo.card("slow").shared_bytes == 0
    assert zoo.verify().is_sound


def test_a_base_may_go_meanwhile(zoo: Zoo, tmp_path: Path, tied: Path, llama: Path):
    zoo.add("kept", tied)
    zoo.add("base", llama)
    adapter = make_lora(llama, tmp_path / "lora")
    with Adding(zoo, "lora", adapter, "base") as adding:
        zoo.remove("base")
        zoo.gc()
    assert [type(error) for error in adding.errors] == [UnknownModel]
    assert [card.name for card in zoo.cards()] == ["kept"]


def test_a_name_may_be_taken_meanwhile(zoo: Zoo, tied: Path, sibling: Path, llama: Path):
    zoo.add("kept", tied)
    with Adding(zoo, "model", sibling) as adding:
        zoo.add("model", llama)
    assert [type(error) for error in adding.errors] == [NameTaken]
    assert zoo.card("model").root == str(llama)
    assert zoo.verify().is_sound


def test_nothing_is_staged_twice_where_nothing_has_changed(
    zoo: Zoo, tmp_path: Path, llama: Path, sibling: Path, monkeypatch: pytest.MonkeyPatch
):
    zoo.add("base", llama)
    staged = []
    real = ingest.stage_model
    monkeypatch.setattr(ingest, "stage_model", lambda *a: (staged.append(a), real(*a))[1])
    zoo.add("adapter", make_lora(llama, tmp_path / "adapter"), base="base")
    zoo.add("sibling", sibling)
    assert len(staged) == 2
