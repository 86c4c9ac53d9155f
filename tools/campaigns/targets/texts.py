"""Tokenizers in each form, the tokens beside them, generation_config.json, chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blockllm.api.tokenizer import TextTokenizer
from blockllm.errors import CheckpointError
from blockllm.zoo.text.conversion import convert
from blockllm.zoo.text.facts import read_facts
from blockllm.zoo.text.files import TEXT_FILES, find_text_files
from blockllm.zoo.text.generation import read_generation
from blockllm.zoo.text.loading import load_tokenizer
from tools.campaigns import makings
from tools.campaigns.documents import put, read_document, seeds_of, words_of
from tools.campaigns.draws import Draws, flipped
from tools.campaigns.oracle import Target

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
PROBE = "The quick <s>brown</s> fox, 日本\n\t ▁é"
SETTINGS: tuple[Any, ...] = (
    {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, "add_prefix_space": None,
     "bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": False},
     "pad_token": None, "add_bos_token": True, "split_special_tokens": False,
     "added_tokens_decoder": {"0": {"content": "<pad>", "special": True, "normalized": False},
                              "300": {"content": "<tool>", "rstrip": True, "special": False}},
     "extra_special_tokens": ["<a>", {"content": "<b>"}], "chat_template": "{{ messages }}"},
    {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>", "errors": "replace",
     "additional_special_tokens": ["<|im_start|>"], "model_max_length": 10**30,
     "extra_special_tokens": {"image_token": "<image>"},
     "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"},
                       {"name": "tool_use", "template": "{% if"}]},
)  # fmt: skip
OLDER: tuple[Any, ...] = (
    {"bos_token": {"content": "<s>"}, "additional_special_tokens": ["<x>", {"content": "<y>"}]},
    {"<extra>": 256, "</s>": 2},
)
GENERATIONS: tuple[Any, ...] = (
    {"eos_token_id": [2, 3], "temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.0,
     "repetition_penalty": 1.05, "max_new_tokens": 64, "do_sample": True},
)  # fmt: skip


def _folder(scratch: Path, name: str) -> Path:
    folder = scratch / name
    folder.mkdir(exist_ok=True)
    return folder


def _read(folder: Path, family: str) -> None:
    """What adding and serving a model do with its text files."""
    files = find_text_files(lambda name: path if (path := folder / name).is_file() else None)
    facts = read_facts(files, files, family)
    facts.notes_of(96)
    assert all(0 <= token < 96 for token in facts.ends_within(96))
    tokenizer, tokens = load_tokenizer(files, family)
    if tokenizer is None:
        return
    text = TextTokenizer(tokenizer)
    ids = _encode(text)
    text.decode(ids, skip_special=False)
    for index in (*ids[:8], *range(6)):
        text.token_bytes(index)
        text.token_text(index)
    assert isinstance(tokens.texts, dict)


def _encode(tokenizer: TextTokenizer) -> list[int]:
    """Ids of a text, as a worker finds them: a panic of the library ends it and is a fault of the
    file."""
    try:
        return tokenizer.encode(PROBE, True)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise CheckpointError(f"the library panics: {error}") from error
        raise


def tokenizer(scratch: Path) -> Target:
    """tokenizer.json: loaded as for a server, a text encoded and decoded."""
    from tests.api.family import byte_level_tokenizer, sentencepiece_like_tokenizer

    folder = _folder(scratch, "tokenizer")
    makings.base(scratch)
    intact = [makings.document(scratch / makings.BASE / "tokenizer.json")]
    for made in (byte_level_tokenizer(), sentencepiece_like_tokenizer()):
        intact.append(json.loads(made.to_str()))
    for document in intact:  # long tables hide what else there is to change
        vocabulary = document["model"]["vocab"]
        document["model"]["vocab"] = dict(list(vocabulary.items())[:24])
        kept = document["model"]["vocab"]
        document["model"]["merges"] = [
            merge for merge in document["model"]["merges"] if _is_of(merge, kept)
        ][:8]
        document["added_tokens"] = document["added_tokens"][:4]
    words = [*words_of(intact), "Replace", "Split", "Precompiled", "NFKC", "Strip", "Unigram"]
    words += ["WordPiece", "WordLevel", "Digits", "Regex", "String", "Prepend", "Fixed", "Right"]

    def run(data: bytes) -> None:
        draws = Draws(data)
        family = draws.pick(FAMILIES)
        put(folder / "tokenizer.json", read_document(draws.rest(), intact, words))
        _read(folder, family)

    return Target(tuple(b"\0" + seed for seed in seeds_of(intact)), run, 8192)


def _is_of(merge: Any, vocabulary: dict[str, int]) -> bool:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return all(part in vocabulary for part in (*parts, "".join(parts)))


def tokens(scratch: Path) -> Target:
    """The files beside tokenizer.json: settings, special tokens, added tokens."""
    folder = _folder(scratch, "tokens")
    put(folder / "tokenizer.json", (makings.base(scratch) / "tokenizer.json").read_bytes())
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    words = words_of([*SETTINGS, *OLDER])

    def run(data: bytes) -> None:
        draws = Draws(data)
        family, name = draws.pick(FAMILIES), draws.pick(names)
        for other in names:
            (folder / other).unlink(missing_ok=True)
        if name != names[0] and draws.below(2):
            put(folder / names[0], b'{"tokenizer_class": "LlamaTokenizer"}')
        put(folder / name, read_document(draws.rest(), (*SETTINGS, *OLDER), words))
        _read(folder, family)

    seeds = [
        bytes([i % 4, i % 3, 0, *seed]) for i, seed in enumerate(seeds_of((*SETTINGS, *OLDER)))
    ]
    return Target(tuple(seeds), run)


def generation(scratch: Path) -> Target:
    """generation_config.json."""
    folder = _folder(scratch, "generation")
    words = words_of(GENERATIONS)

    def run(data: bytes) -> None:
        path = put(folder / "generation_config.json", read_document(data, GENERATIONS, words))
        found = read_generation({"generation_config.json": path})
        assert set(found.sampling) <= {
            *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens")
        }

    return Target(seeds_of(GENERATIONS), run, 1024)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _model(pieces: list[tuple[str, int]]) -> bytes:
    """A SentencePiece model of BPE with these pieces and their kinds."""
    listed = [
        _field(1, _field(1, text.encode()) + b"\x15\0\0\0\0" + b"\x18" + _varint(kind))
        for text, kind in pieces
    ]
    return b"".join(listed) + _field(2, b"\x18\2\x20\x10")


def sentencepiece(scratch: Path) -> Target:
    """tokenizer.model: its protocol buffer, and the tokenizer made of it."""
    folder = _folder(scratch, "sentencepiece")
    put(folder / "tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer", "legacy": true}')
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<0x0A>", 6), ("\u2581", 1), ("t", 1)]
    intact = _model([*pieces, ("h", 1), ("th", 1), ("\u2581th", 1), ("<tool>", 4)])

    def run(data: bytes) -> None:
        draws = Draws(data)
        kind = draws.below(2)
        put(folder / "tokenizer.model", draws.rest() if kind else flipped(intact, draws))
        _convert(folder)

    return Target((b"\1" + intact, b"\0\1\x09\0\7"), run, 1024)


def vocabulary(scratch: Path) -> Target:
    """vocab.json and merges.txt, and the tokenizer made of them."""
    folder = _folder(scratch, "vocabulary")
    put(folder / "tokenizer_config.json", b'{"tokenizer_class": "Qwen2Tokenizer"}')
    vocabularies = ({"a": 0, "b": 1, "ab": 2, "Ġa": 3, "Ġ": 4, "<|endoftext|>": 5},)
    merges = b"#version: 0.2\na b\n\xc4\xa0 a\n"

    def run(data: bytes) -> None:
        draws = Draws(data)
        both = draws.below(2)
        put(folder / "merges.txt", flipped(merges, Draws(draws.take(8))) if both else merges)
        put(folder / "vocab.json", read_document(draws.rest(), vocabularies, ["a", "b", "ab"]))
        _convert(folder)

    seeds = [b"\0" + seed for seed in seeds_of(vocabularies)]
    return Target((*seeds, b"\1\1\2\3\4\5\6\7\x08" + seeds[0][1:]), run, 1024)


def _convert(folder: Path) -> None:
    files = find_text_files(lambda name: path if (path := folder / name).is_file() else None)
    assert set(files) <= set(TEXT_FILES) - {"tokenizer.json"}
    made = convert(folder, files, "llama" if (folder / "tokenizer.model").exists() else "qwen2")
    if made is not None and made.text is not None:
        json.loads(made.text)
