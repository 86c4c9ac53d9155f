"""The part of a tokenizer that makes text of ids, which the HTTP process keeps: it is small, and
what it makes of a token is bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

from blockllm.errors import CheckpointError
from blockllm.zoo.text.files import TOKENIZER

MAX_TOKEN = 1 << 16  # characters; published ones have up to some hundred
MAX_GROWTH = 16  # times that decoding may lengthen a token
_FOR_TEXTS = ("normalizer", "pre_tokenizer", "post_processor", "truncation", "padding")


def decoding_part(tokenizer: Tokenizer) -> str:
    """The tokenizer as JSON without what only texts need.

    Raises CheckpointError when a token or what decoding makes of it has no sensible bound.
    """
    document = json.loads(tokenizer.to_str())
    _check(document)
    document |= dict.fromkeys(_FOR_TEXTS)
    model = document["model"]
    if "merges" in model:
        model["merges"] = []
    return json.dumps(document, ensure_ascii=False)


def check_decoding(tokenizer: Tokenizer) -> None:
    """Raise CheckpointError when a token or what decoding makes of it has no sensible bound."""
    _check(json.loads(tokenizer.to_str()))


def _check(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    words = vocabulary if isinstance(vocabulary, dict) else (entry[0] for entry in vocabulary)
    longest = max(map(len, words), default=0)
    longest = max([longest, *(len(token["content"]) for token in document["added_tokens"])])
    if longest > MAX_TOKEN:
        raise CheckpointError(f"{TOKENIZER}: a token has {longest} characters, allowed {MAX_TOKEN}")
    growth = 1.0
    for decoder in _decoders(document["decoder"]):
        if decoder.get("type") == "Replace":
            growth *= _growth(decoder)
    if growth > MAX_GROWTH:
        raise CheckpointError(
            f"{TOKENIZER}: decoder: may make a text {growth:.0f} times as long, allowed "
            f"{MAX_GROWTH}"
        )


def _decoders(decoder: Any) -> Iterator[dict[str, Any]]:
    if isinstance(decoder, dict):
        yield decoder
        for part in decoder.get("decoders") or ():
            yield from _decoders(part)


def _growth(replace: dict[str, Any]) -> float:
    """How many times as long a Replace may make a text."""
    pattern = replace["pattern"]
    if "String" not in pattern:
        raise CheckpointError(f"{TOKENIZER}: decoder: replaces a regular expression, not a string")
    if not pattern["String"]:
        raise CheckpointError(f"{TOKENIZER}: decoder: replaces an empty string")
    return max(1.0, len(replace["content"]) / len(pattern["String"]))
