"""Answers end at every token that the files call an end, a model's own and its base's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from blockllm.errors import CheckpointError
from blockllm.zoo import AddReport, Zoo
from tests.makers import make_checkpoint, make_lora

ROWS = 8
END, TURN = 2, 7  # tokens "t2" and "<|im_end|>"


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of eight tokens whose config names t2, with no other file."""
    path = make_checkpoint(
        tmp_path_factory.mktemp("bare"), vocab_size=ROWS, num_hidden_layers=1, hidden_size=8,
        intermediate_size=8, num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    (path / "generation_config.json").unlink()
    return path


@pytest.fixture(scope="module")
def adapter(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of it without text files."""
    return make_lora(bare, tmp_path_factory.mktemp("adapter"))


def copy(source: Path, target: Path, **files: Any) -> Path:
    """The folder with text files; `tokenizer=True` writes one of words t0 … t6 and <|im_end|>."""
    shutil.copytree(source, target)
    if files.pop("tokenizer", False):
        words = {f"t{index}": index for index in range(TURN)} | {"<|im_end|>": TURN}
        Tokenizer(models.WordLevel(words, "t0")).save(str(target / "tokenizer.json"))
    for name, document in files.items():
        (target / f"{name}.json").write_text(json.dumps(document))
    return target


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config": {"eos_token": "<|im_end|>"}},
        {"tokenizer_config": {"eos_token": {"__type": "AddedToken", "content": "<|im_end|>"}}},
        {"tokenizer_config": {"eos_token": {"content": "<|im_end|>", "lstrip": False}}},
        {
            "tokenizer_config": {"eos_token": None},
            "special_tokens_map": {"eos_token": "<|im_end|>"},
        },
        {"special_tokens_map": {"eos_token": {"content": "<|im_end|>"}}},
    ],
)
def test_the_tokenizers_end_counts(zoo: Zoo, tmp_path: Path, bare: Path, files: dict[str, Any]):
    zoo.add("model", copy(bare, tmp_path / "model", tokenizer=True, **files))
    assert zoo.chain("model").eos_ids == (END, TURN)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (END,)),
        ({"tokenizer_config": {"eos_token": "<|im_end|>"}, "tokenizer": True}, (TURN, END)),
        ({"generation_config": {"eos_token_id": [4, TURN]}}, (4, TURN, END)),
        ({"generation_config": {"eos_token_id": 5}}, (5, END)),
        ({"generation_config": {"eos_token_id": None}}, (END,)),
        ({"generation_config": {"temperature": 0.5}}, (END,)),
        (
            {
                "tokenizer": True,
                "tokenizer_config": {"eos_token": "t3"},
                "generation_config": {"eos_token_id": 4},
            },
            (4, 3, END),
        ),
    ],
)
def test_an_adapters_own_ends_come_before_its_bases(
    zoo: Zoo, tmp_path: Path, bare: Path, adapter: Path, files: dict[str, Any], expected: object
):
    zoo.add("base", bare)
    zoo.add("tuned", copy(adapter, tmp_path / "tuned", **files), base="base")
    assert zoo.chain("tuned").eos_ids == expected
    zoo.add("bare", adapter, base="tuned")
    assert zoo.chain("bare").eos_ids == expected
    own = copy(adapter, tmp_path / "own", generation_config={"eos_token_id": 1})
    zoo.add("own", own, base="tuned")
    assert zoo.chain("own").eos_ids == (1, *expected)  # type: ignore[misc]


def test_an_adapters_settings_are_read_with_its_bases_tokenizer(
    zoo: Zoo, tmp_path: Path, bare: Path, adapter: Path
):
    zoo.add("base", copy(bare, tmp_path / "base", tokenizer=True))
    settings = {"eos_token": "<|im_end|>"}
    zoo.add("tuned", copy(adapter, tmp_path / "tuned", tokenizer_config=settings), base="base")
    assert zoo.chain("tuned").eos_ids == (TURN, END)
    assert zoo.chain("base").eos_ids == (END,)


def test_models_made_of_others_have_their_ends(zoo: Zoo, tmp_path: Path, bare: Path):
    settings = {"eos_token": "<|im_end|>"}
    zoo.add("model", copy(bare, tmp_path / "m", tokenizer=True, tokenizer_config=settings))
    zoo.assemble("made", "model", zoo.layers("model"))
    assert zoo.chain("made").eos_ids == (END, TURN)


def notes(report: AddReport) -> str:
    return "\n".join(report.notes)


def test_ends_that_the_model_does_not_have_are_said_and_ignored(
    zoo: Zoo, tmp_path: Path, bare: Path, adapter: Path
):
    files: dict[str, Any] = {"generation_config": {"eos_token_id": [8, 3, -1]}, "tokenizer": True}
    files["tokenizer_config"] = {"eos_token": "<new>"}
    report = zoo.add("base", copy(bare, tmp_path / "base", **files))
    assert zoo.chain("base").eos_ids == (END, 3)
    assert "end token -1 is none of the model's tokens, which are 0 to 7: ignored" in report.notes
    assert "end token 8" in notes(report)
    tuned = copy(adapter, tmp_path / "tuned", generation_config={"eos_token_id": 99})
    assert "end token 99" in notes(zoo.add("tuned", tuned, base="base"))


@pytest.mark.parametrize("value", ["7", 7.5, {"id": 7}, [[7]], True])
def test_ends_that_are_no_ids_are_refused(zoo: Zoo, tmp_path: Path, bare: Path, value: object):
    source = copy(bare, tmp_path / "model", generation_config={"eos_token_id": value})
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id: expected"):
        zoo.add("model", source)
