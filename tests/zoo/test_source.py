"""Hub ids: fetched through huggingface_hub if it is there, explained if not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from blockllm.errors import CheckpointError
from blockllm.zoo import Zoo


def test_hub_repository(zoo: Zoo, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options["allow_patterns"]))
        return str(llama)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    zoo.add("model", "org/model-1.5")
    assert asked == [("org/model-1.5", ["*.json", "*.safetensors", "*.jinja"])]
    assert zoo.card("model").root == "org/model-1.5"


def test_hub_repository_without_safetensors(
    zoo: Zoo, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fetched").mkdir()
    shutil.copy(llama / "config.json", tmp_path / "fetched")
    fetched = str(tmp_path / "fetched")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: fetched)
    with pytest.raises(CheckpointError, match=r"'org/model' has no \.safetensors file"):
        zoo.add("model", "org/model")


def test_without_huggingface_hub(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"blockllm\[hub\]"):
        zoo.add("model", "org/model")


@pytest.mark.parametrize("source", ["org/model/x", "../model", "/org/model", "model", "", "a\0/b"])
def test_other_names_are_no_hub_ids(zoo: Zoo, source: str) -> None:
    with pytest.raises(CheckpointError):
        zoo.add("model", Path("/nowhere") / source if source in ("", ".") else source)
