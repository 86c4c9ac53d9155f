"""Answers that are kept: found by content only, and equal to what the reference says today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.makers import make_checkpoint, make_lora
from tests.oracle import kept, reference

PROMPT = [5, 6, 7]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept, "FOLDER", tmp_path / "answers")
    monkeypatch.setattr(kept, "RENEW", True)
    make_checkpoint(tmp_path / "base", num_hidden_layers=1)
    make_lora(tmp_path / "base", tmp_path / "lora", target_modules=["q_proj", "v_proj", "o_proj"])
    return tmp_path


def ask(folder: Path, scale: float | None = None, tokens: int = 4) -> reference.Expected:
    return kept.expected(folder / "base", [folder / "lora"], PROMPT, tokens, scale)


def test_a_kept_answer_is_the_reference_s(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask(folder)
    fresh = reference.generate(
        reference.load(folder / "base", folder / "lora"), PROMPT, max_tokens=4
    )
    monkeypatch.setattr(kept, "RENEW", False)
    monkeypatch.setattr(reference, "load", None)  # not asked again
    found = ask(folder)
    assert found.tokens == fresh.tokens
    likely = found.logprobs.isfinite()
    assert likely.sum(1).tolist() == [8] * 4
    assert (found.logprobs[likely] - fresh.logprobs[likely]).abs().max() < 1e-5


def test_what_an_answer_follows_from_names_it(folder: Path) -> None:
    def count() -> int:
        return len(list(kept.FOLDER.iterdir()))

    ask(folder)
    ask(folder)
    assert count() == 1
    ask(folder, scale=0.5)
    ask(folder, tokens=5)
    assert count() == 3
    make_lora(folder / "base", folder / "lora", seed=2, target_modules=["q_proj"])
    ask(folder)
    assert count() == 4


def test_the_folder_s_place_does_not_count(folder: Path, tmp_path: Path) -> None:
    ask(folder)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("base", "lora"):
        (folder / name).rename(moved / name)
    config = moved / "lora" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(folder), str(moved)))
    ask(moved)
    assert len(list(kept.FOLDER.iterdir())) == 1
