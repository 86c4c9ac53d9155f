"""Choices and documents drawn from the bytes of one input.

A fuzzer mutates bytes; read as choices they become edits of an intact document, so that most
inputs pass the outer syntax and reach what lies behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 8, 64, 127, 128, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32),
    *(-(2**31), 2**53, 2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**310, 0.0, -0.0, 0.5, 1e-300),
    *(1.5, 16.0, 1e16, 1e300, 1e308, -1e308, float("nan"), float("inf"), float("-inf")),
)
TEXTS = (
    *(
        "",
        " ",
        "0",
        "-1",
        "a",
        "null",
        "é",
        "日本",
        "\0",
        "\n",
        "\ud800",
        "😀",
        "\u202e",
        "\x1b[31m",
    ),
    *("../x", "/etc/passwd", "x" * 300, "{{ 1 }}", "%s", "a.b.c", "model", "▁", "<s>", "</s>", "Ā"),
)
MAX_EDITS = 8
MAX_DEPTH = 3


class Draws:
    """Reads choices off an input; behind its end every choice is the first one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        """The next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def rest(self) -> bytes:
        """All bytes that are left."""
        return self.take(len(self._data))

    def below(self, limit: int) -> int:
        """A number from 0 to `limit` - 1."""
        if limit <= 1:
            return 0
        width = 1 if limit <= 256 else 3
        return int.from_bytes(self.take(width), "little") % limit

    def pick(self, values: Sequence[T]) -> T:
        """One of the values."""
        return values[self.below(len(values))]

    def number(self) -> int | float:
        """A number at an edge, or a small or large integer."""
        kind = self.below(4)
        if kind < 2:
            return self.pick(NUMBERS)
        return int.from_bytes(self.take(1 if kind == 2 else 5), "little", signed=True)

    def text(self, words: Sequence[str] = ()) -> str:
        """A text of some kind, often one of the words that mean something here."""
        kind = self.below(4)
        if kind == 0:
            return self.pick(TEXTS)
        if kind == 1 or not words:
            return self.take(self.below(24)).decode("utf-8", "surrogateescape")
        return self.pick(words)

    def value(self, words: Sequence[str] = (), depth: int = MAX_DEPTH) -> Any:
        """A JSON value."""
        kind = self.below(10 if depth else 6)
        if kind < 3:
            return self.pick((None, True, False)) if kind == 0 else self.number()
        if kind < 6:
            return self.text(words)
        size = self.below(4)
        if kind < 8:
            return [self.value(words, depth - 1) for _ in range(size)]
        return {self.text(words): self.value(words, depth - 1) for _ in range(size)}


def edited(document: Any, draws: Draws, words: Sequence[str] = ()) -> Any:
    """A copy of a JSON document with some parts replaced, removed, added, doubled or swapped."""
    box = [copy.deepcopy(document)]
    for _ in range(1 + draws.below(MAX_EDITS)):
        if draws.is_empty:
            break
        _edit(box, draws, words)
    return box[0]


def _edit(box: list[Any], draws: Draws, words: Sequence[str]) -> None:
    holder: Any = box
    key: Any = 0
    while isinstance(holder[key], dict | list) and holder[key] and draws.below(4):
        holder = holder[key]
        key = draws.pick(list(holder)) if isinstance(holder, dict) else draws.below(len(holder))
    kind = draws.below(8)
    found = holder[key]
    if kind == 0 and holder is not box:
        del holder[key]
    elif kind == 1 and isinstance(found, dict):
        found[draws.text(words)] = draws.value(words)
    elif kind == 1 and isinstance(found, list):
        found.insert(draws.below(len(found) + 1), draws.value(words))
    elif kind == 2 and isinstance(found, list | str) and len(found) < 1000:
        holder[key] = found * (2 + draws.below(3))
    elif kind == 3 and isinstance(found, int | float):
        holder[key] = draws.number()
    elif kind == 4 and isinstance(found, str):
        holder[key] = draws.text(words)
    elif kind == 5 and isinstance(holder, dict):
        holder[draws.text(words)] = holder.pop(key)
    elif kind == 6:
        holder[key] = [found]
    else:
        holder[key] = draws.value(words)


def flipped(data: bytes, draws: Draws) -> bytes:
    """A copy of the bytes with some changed, cut, doubled or put elsewhere."""
    changed = bytearray(data)
    for _ in range(1 + draws.below(MAX_EDITS)):
        if draws.is_empty:
            break
        at, kind = draws.below(len(changed) + 1), draws.below(5)
        if kind == 0:
            changed[at : at + 1] = draws.take(1)
        elif kind == 1:
            changed[at:at] = draws.take(draws.below(12))
        elif kind == 2:
            del changed[at : at + draws.below(64)]
        elif kind == 3:
            piece = changed[at : at + draws.below(64)]
            to = draws.below(len(changed) + 1)
            changed[to:to] = piece
        else:
            changed[at : at + 8] = draws.pick(_WIDE)
    return bytes(changed)


_WIDE = (
    b"\0" * 8,
    b"\xff" * 8,
    b"\1" + b"\0" * 7,
    b"\xff\xff\xff\x7f\0\0\0\0",
    b"\0" * 7 + b"\x80",
)
