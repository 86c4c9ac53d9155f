"""Ids equal AutoTokenizer's, wherever the files name a token and whatever they say of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from blockllm.errors import CheckpointError
from blockllm.zoo.text import find_text_files, load_tokenizer
from tests.api.family import byte_level_tokenizer, sentencepiece_like_tokenizer

TEXTS = (
    "the thing in <|im_end|>the", "<s>the</s> the<x>", " a <x> b <y>  c", "<|im_end|><|im_end|>",
    "the<extra>in <EXTRA> x<x>x", "", " ", "he said: <|im_start|>user\nhi<|im_end|>\n",
)  # fmt: skip


def token(content: str, **flags: bool) -> dict[str, Any]:
    """A token as tokenizer_config.json writes it."""
    values: dict[str, Any] = dict.fromkeys(("lstrip", "rstrip", "single_word"), False)
    return {"content": content, "normalized": False, "special": True, **values, **flags}


def plain() -> Tokenizer:
    """Byte-level without a special token of its own."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(letters))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def lowering() -> Tokenizer:
    """One whose normalizer changes what tokens have to be matched in."""
    tokenizer = plain()
    tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, family: str, **files: Any) -> None:
    """A model's text files; keys are file names without the suffix."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    for name, document in files.items():
        (folder / f"{name}.json").write_text(json.dumps(document))


def assert_equal(folder: Path, family: str) -> None:
    """Our ids and named tokens are AutoTokenizer's, with and without what is put around a text."""
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)
    files = find_text_files(lambda name: p if (p := folder / name).exists() else None)
    ours, tokens = load_tokenizer(files, family)
    assert ours is not None
    for text, special in itertools.product(TEXTS, (True, False)):
        expected = theirs.encode(text, add_special_tokens=special)
        assert ours.encode(text, add_special_tokens=special).ids == expected, text
    assert tokens.texts == theirs.special_tokens_map
    added = {index: repr(each) for index, each in ours.get_added_tokens_decoder().items()}
    assert added == {index: repr(each) for index, each in theirs.added_tokens_decoder.items()}


SETTINGS: dict[str, dict[str, Any]] = {
    "decoder": {"added_tokens_decoder": {"256": token("<|im_end|>"), "257": token("<x>")}},
    "gap": {"added_tokens_decoder": {"300": token("<|im_end|>"), "290": token("<x>")}},
    "empty": {"added_tokens_decoder": {}, "eos_token": "<|im_end|>"},
    "ordinary": {"added_tokens_decoder": {"256": token("<|im_end|>", special=False)}},
    "named": {"eos_token": "<|im_end|>", "pad_token": "<x>", "bos_token": None},
    "objects": {"eos_token": {"__type": "AddedToken", **token("<|im_end|>", lstrip=True)}},
    "additional": {"additional_special_tokens": ["<|im_end|>", "<x>"]},
    "extra": {"extra_special_tokens": ["<|im_end|>", "<x>"], "additional_special_tokens": ["<y>"]},
    "extra by name": {"extra_special_tokens": {"image_token": "<x>", "audio_token": "<y>"}},
    "own name": {"think_token": "<x>", "eos_token": "<y>"},
    "named and listed": {
        "added_tokens_decoder": {"256": token("<x>", special=False, rstrip=True)},
        "eos_token": "<x>",
    },
    "flags of ours": {"add_bos_token": True, "add_eos_token": True, "eos_token": "<x>"},
    "split": {"split_special_tokens": True, "eos_token": "<x>"},
    "nothing": {},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_of_tokenizer_config(tmp_path: Path, name: str):
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **SETTINGS[name]}
    write(tmp_path, plain(), "llama", tokenizer_config=settings)
    assert_equal(tmp_path, "llama")


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized", "special"])
@pytest.mark.parametrize("make", [plain, lowering, byte_level_tokenizer])
def test_every_flag_of_a_token(tmp_path: Path, make: Callable[[], Tokenizer], flag: str):
    for value in (True, False):
        listed = {"900": token("<x>", **{flag: value}), "901": token("<EXTRA>", **{flag: value})}
        settings = {"added_tokens_decoder": listed, "tokenizer_class": "PreTrainedTokenizerFast"}
        write(tmp_path, make(), "llama", tokenizer_config=settings)
        assert_equal(tmp_path, "llama")


@pytest.mark.parametrize("special", [True, False])
def test_tokenizer_config_changes_the_flags_of_a_known_token(tmp_path: Path, special: bool):
    tokenizer = plain()
    tokenizer.add_tokens([AddedToken("<x>", special=not special)])
    listed = {"256": token("<x>", special=special, lstrip=True)}
    write(tmp_path, tokenizer, "llama", tokenizer_config={"added_tokens_decoder": listed})
    assert_equal(tmp_path, "llama")


OLDER: dict[str, dict[str, Any]] = {
    "map": {"special_tokens_map": {"eos_token": "<|im_end|>", "pad_token": token("<x>")}},
    "map wins": {
        "special_tokens_map": {"eos_token": "<x>"}, "tokenizer_config": {"eos_token": "<y>"},
    },
    "map unused": {
        "special_tokens_map": {"eos_token": "<x>"},
        "tokenizer_config": {"added_tokens_decoder": {"256": token("<y>")}},
    },
    "map's list": {"special_tokens_map": {"additional_special_tokens": ["<|im_end|>", "<x>"]}},
    "both lists": {
        "special_tokens_map": {"extra_special_tokens": ["<x>", {"content": "<y>"}]},
        "tokenizer_config": {"extra_special_tokens": ["<|im_end|>"]},
    },
    "added": {"added_tokens": {"<x>": 257, "<|im_end|>": 256}},
    "added and named": {
        "added_tokens": {"<x>": 257, "<|im_end|>": 256},
        "special_tokens_map": {"eos_token": "<|im_end|>"},
    },
    "added unused": {
        "added_tokens": {"<x>": 256}, "tokenizer_config": {"added_tokens_decoder": {}},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OLDER)
def test_tokens_of_older_files(tmp_path: Path, name: str):
    files = {"tokenizer_config": {}, **OLDER[name]}
    write(tmp_path, plain(), "llama", **files)
    assert_equal(tmp_path, "llama")


def legacy_llama() -> Tokenizer:
    """Spaces are marked by the normalizer, in front of every piece, as Llama 2 was saved."""
    tokenizer = sentencepiece_like_tokenizer()
    tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
@pytest.mark.parametrize("made", ["LlamaTokenizer", "LlamaTokenizerFast", "TokenizersBackend"])
@pytest.mark.parametrize("extra", [{}, {"legacy": True}, {"add_prefix_space": False}])
def test_a_llama_tokenizer_is_built_from_its_vocabulary(
    tmp_path: Path, family: str, made: str, extra: dict[str, bool]
):
    for tokenizer in (legacy_llama(), sentencepiece_like_tokenizer(), byte_level_tokenizer()):
        settings = {"tokenizer_class": made, "unk_token": "<unk>", "bos_token": None, **extra}
        write(tmp_path, tokenizer, family, tokenizer_config=settings)
        assert_equal(tmp_path, family)


@pytest.mark.parametrize("extra", [{}, {"add_prefix_space": True}, {"bos_token": "<x>"}])
def test_a_qwen2_tokenizer_is_built_from_its_vocabulary(tmp_path: Path, extra: dict[str, Any]):
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", **extra}
    for family in ("qwen2", "qwen3", "llama"):
        write(tmp_path, byte_level_tokenizer(), family, tokenizer_config=settings)
        assert_equal(tmp_path, family)


def test_how_a_tokenizer_was_last_called_does_not_matter(tmp_path: Path):
    tokenizer = byte_level_tokenizer()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64, pad_token="<x>")
    for settings in ({}, {"pad_token": "</s>"}, {"pad_token": None}):
        write(tmp_path, tokenizer, "llama", tokenizer_config=settings)
        assert_equal(tmp_path, "llama")


@pytest.mark.parametrize(
    ("file", "document", "match"),
    [
        ("tokenizer_config", {"added_tokens_decoder": {"5": 7}}, "added_tokens_decoder: expected"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": token("a")}}, "token's id, got 'x'"),
        ("tokenizer_config", {"eos_token": {"lstrip": True}}, "eos_token: expected a token"),
        ("tokenizer_config", {"eos_token": 7}, "eos_token: expected a token, got 7"),
        ("tokenizer_config", {"extra_special_tokens": "a"}, "expected a list or an object"),
        ("tokenizer_config", {"legacy": "yes"}, "legacy: expected"),
        ("special_tokens_map", {"eos_token": {"content": 7}}, "special_tokens_map.json: expected"),
        ("added_tokens", {"<x>": None}, "added_tokens.json: expected a token's id"),
        ("tokenizer", {"model": {}}, "tokenizer.json: not a usable tokenizer"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, document: object, match: str):
    write(tmp_path, plain(), "llama")
    (tmp_path / f"{file}.json").write_text(json.dumps(document))
    files = find_text_files(lambda name: p if (p := tmp_path / name).exists() else None)
    with pytest.raises(CheckpointError, match=match):
        load_tokenizer(files, "llama")


def test_null_means_absent(tmp_path: Path):
    nulls = dict.fromkeys(
        ("tokenizer_class", "added_tokens_decoder", "eos_token", "extra_special_tokens", "legacy",
         "additional_special_tokens", "add_prefix_space", "split_special_tokens")
    )  # fmt: skip
    write(tmp_path, plain(), "llama", tokenizer_config=nulls, special_tokens_map={"x_token": None})
    files = find_text_files(lambda name: p if (p := tmp_path / name).exists() else None)
    tokenizer, tokens = load_tokenizer(files, "llama")
    assert tokenizer is not None
    assert (tokens.named, tokens.extra, tokens.added) == ({}, (), ())
