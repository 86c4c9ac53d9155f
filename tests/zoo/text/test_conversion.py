"""Folders without tokenizer.json: made from the vocabulary as AutoTokenizer does, or said."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from blockllm.errors import CheckpointError
from blockllm.zoo import Zoo
from blockllm.zoo.text import find_text_files, load_tokenizer
from blockllm.zoo.text.sentencepiece import Piece, read_model
from tests.api.family import byte_level_tokenizer, sentencepiece_like_tokenizer
from tests.zoo.text.test_tokens import TEXTS

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6


def pieces_of(tokenizer: Tokenizer) -> list[Piece]:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    kinds = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "~": USER}
    return [
        Piece(text, kinds.get(text, BYTE if text.startswith("<0x") else NORMAL))
        for text, _ in vocabulary
    ]


def sentencepiece_model(pieces: Sequence[Piece], kind: int = 2) -> bytes:
    """A model as the library saves it."""
    data = b""
    for index, (text, piece_kind) in enumerate(pieces):
        fields = field(1, text.encode()) + b"\x15" + struct.pack("<f", -index)
        data += field(1, fields + bytes([0x18, piece_kind]))
    trainer = bytes([0x18, kind]) + field(1, b"corpus.txt") + bytes([0x98, 0x02, 0x01])
    return data + field(2, trainer) + field(3, field(1, b"identity"))


def field(number: int, value: bytes) -> bytes:
    size, length = len(value), b""
    while size > 127:
        size, length = size >> 7, length + bytes([size & 127 | 128])
    return bytes([number << 3 | 2]) + length + bytes([size]) + value


def add(zoo: Zoo, source: Path, family: str, settings: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a model whose folder has these settings and the vocabulary's files."""
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    (note, *_) = zoo.add("model", source).notes
    assert note.startswith("tokenizer.json was made of ")
    files = find_text_files(lambda file: zoo.asset("model", file))
    assert files["tokenizer.json"].suffix == ".json"
    tokenizer = load_tokenizer(files, family).tokenizer
    assert tokenizer is not None
    assert zoo.verify().is_sound
    return tokenizer


def theirs(folder: Path, family: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    (folder / "config.json").write_text(json.dumps({"model_type": family}))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return AutoTokenizer.from_pretrained(folder)


def bare(llama: Path, target: Path) -> Path:
    """A checkpoint without any text file."""
    shutil.copytree(llama, target)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (target / file).unlink()
    return target


@pytest.mark.parametrize("extra", [{}, {"legacy": True}, {"add_prefix_space": False}])
def test_a_llama_tokenizer_is_made_of_its_sentencepiece_model(
    zoo: Zoo, tmp_path: Path, llama: Path, extra: dict[str, Any]
):
    settings = {"tokenizer_class": "LlamaTokenizer", "eos_token": "<|im_end|>", **extra}
    source = bare(llama, tmp_path / "source")
    tokenizer = sentencepiece_like_tokenizer()
    (source / "tokenizer.model").write_bytes(sentencepiece_model(pieces_of(tokenizer)))
    ours = add(zoo, source, "llama", settings)
    reference = tmp_path / "reference"
    reference.mkdir()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens(["~"])
    tokenizer.save(str(reference / "tokenizer.json"))
    expected = theirs(reference, "llama", settings)
    for text in (*TEXTS, "a~b ~ c", "ä中"):
        assert ours.encode(text).ids == expected(text)["input_ids"], text


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"add_prefix_space": True, "added_tokens_decoder": {}},
        {"bos_token": "<s>", "add_bos_token": True, "add_eos_token": True},
        {"add_bos_token": True},
    ],
)
def test_a_qwen2_tokenizer_is_made_of_vocabulary_and_merges(
    zoo: Zoo, tmp_path: Path, llama: Path, extra: dict[str, Any]
):
    settings = {"tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<|im_end|>", **extra}
    source = bare(llama, tmp_path / "source")
    reference = tmp_path / "reference"
    reference.mkdir()
    for folder in (source, reference):
        byte_level_tokenizer().model.save(str(folder))
    ours, expected = add(zoo, source, "llama", settings), theirs(reference, "llama", settings)
    for text in TEXTS:
        assert ours.encode(text).ids == expected(text)["input_ids"], text


@pytest.mark.parametrize("made", [None, "GPT2Tokenizer", "LlamaTokenizer"])
def test_what_cannot_be_made_is_said(zoo: Zoo, tmp_path: Path, llama: Path, made: str | None):
    source = bare(llama, tmp_path / "source")
    byte_level_tokenizer().model.save(str(source))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": made}))
    first, second = zoo.add("model", source).notes
    assert first.startswith("vocab.json and merges.txt: not read for the tokenizer_class ")
    assert "save_pretrained(FOLDER) writes tokenizer.json" in first
    assert second.startswith("no tokenizer.json: ")


def test_a_tokenizer_json_beside_them_counts(zoo: Zoo, tmp_path: Path, llama: Path):
    source = shutil.copytree(llama, tmp_path / "source")
    (source / "tokenizer.model").write_bytes(b"never looked at")
    assert zoo.add("model", source).notes == ()


WHOLE = sentencepiece_model(pieces_of(sentencepiece_like_tokenizer()))


@pytest.mark.parametrize(
    ("file", "data", "match"),
    [
        ("tokenizer.model", b"", "not a SentencePiece model: it has no pieces"),
        ("tokenizer.model", WHOLE[:-3], "not a SentencePiece model: damaged at byte"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "not a SentencePiece model"),
        ("tokenizer.model", sentencepiece_model([Piece("a", 1)], kind=1), "expected a BPE model"),
        ("vocab.json", b"{", "vocab.json: damaged JSON"),
        ("vocab.json", b'{"a": -1}', "vocab.json: a: expected an integer from 0 to"),
        ("vocab.json", b'{"a": 10000000000}', "vocab.json: a: expected an integer from 0 to"),
        ("merges.txt", b"x\n", "merges.txt: line 1: expected two pieces, got 'x'"),
        ("merges.txt", b"\xff\xff\n", "merges.txt: not UTF-8"),
        ("merges.txt", b"q zz\n", "vocab.json and merges.txt: not a usable tokenizer"),
    ],
)
def test_damaged_files_are_refused_by_name(
    zoo: Zoo, tmp_path: Path, llama: Path, file: str, data: bytes, match: str
):
    source = bare(llama, tmp_path / "source")
    made = "LlamaTokenizer" if file == "tokenizer.model" else "Qwen2Tokenizer"
    if file != "tokenizer.model":
        byte_level_tokenizer().model.save(str(source))
    (source / file).write_bytes(data)
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": made}))
    with pytest.raises(CheckpointError, match=match):
        zoo.add("model", source)


@given(st.binary(max_size=60), st.integers(0, len(WHOLE)))
def test_any_bytes_are_a_model_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
):
    path = tmp_path_factory.getbasetemp() / "noise.model"
    path.write_bytes(WHOLE[:at] + noise + WHOLE[at + len(noise) :])
    try:
        assert read_model(path).pieces
    except CheckpointError as error:
        assert str(error).startswith("noise.model: ")
