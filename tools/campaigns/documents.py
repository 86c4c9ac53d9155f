"""Inputs for readers of JSON files: the bytes of a file, or edits of an intact one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tools.campaigns.draws import Draws, edited, flipped

WHOLE, EDITS, FLIPS = 0, 1, 2  # the first byte of an input, of those that are left modulo 3


def read_document(data: bytes, intact: Sequence[Any], words: Sequence[str] = ()) -> bytes:
    """The file that an input stands for."""
    draws = Draws(data)
    kind = draws.below(3)
    if kind == WHOLE:
        return draws.rest()
    document = draws.pick(intact)
    if kind == EDITS:
        return as_bytes(edited(document, draws, words))
    return flipped(as_bytes(document), draws)


def seeds_of(intact: Sequence[Any]) -> tuple[bytes, ...]:
    """Inputs that stand for the intact documents, and for a few edits of them."""
    whole = [bytes([WHOLE]) + as_bytes(document) for document in intact]
    edits = [bytes([EDITS, i % 256, 1, 1, 2, 3, 4, 5, 6]) for i in range(len(intact))]
    return *whole, *edits, bytes([FLIPS, 0, 1, 3, 0, 9])


def as_bytes(document: Any) -> bytes:
    """JSON of a document, as Python writes it."""
    return json.dumps(document).encode()


def words_of(documents: Iterable[Any]) -> list[str]:
    """Every key and text in documents, each once: the words that mean something to a reader."""
    found: dict[str, None] = {}
    for document in documents:
        _collect(document, found)
    return [word for word in found if len(word) <= 80]


def _collect(value: Any, found: dict[str, None]) -> None:
    if isinstance(value, dict):
        found.update(dict.fromkeys(map(str, value)))
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            _collect(part, found)
    elif isinstance(value, str):
        found[value] = None


def put(path: Path, data: bytes) -> Path:
    """Write a file; its path."""
    with path.open("wb") as file:
        file.write(data)
    return path
