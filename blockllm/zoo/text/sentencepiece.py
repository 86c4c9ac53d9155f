"""The pieces of a SentencePiece model, read from its protocol buffer with every length checked."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from blockllm.errors import CheckpointError
from blockllm.zoo.foreign import read_foreign

CONTROL, USER_DEFINED = 3, 4  # kinds of pieces that are tokens of their own
BPE = 2  # of the kinds of models
_MAX_BYTES = 64 << 20  # the largest published one has 4 MB
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PIECE, _TRAINER = 1, 2  # fields of the model
_TEXT, _KIND = 1, 3  # fields of a piece; _KIND is the trainer's model kind, too

_Value = int | memoryview


class Piece(NamedTuple):
    """One token: its text with ▁ for spaces, and its kind."""

    text: str
    kind: int


class Model(NamedTuple):
    """The pieces by id, and how the model cuts text into them."""

    pieces: list[Piece]
    kind: int


def read_model(path: Path) -> Model:
    """Raises CheckpointError, naming the file, when it is no SentencePiece model."""
    data = read_foreign(path, _MAX_BYTES)
    try:
        pieces, kind = [], 1
        for number, value in _fields(memoryview(data)):
            if number == _PIECE and isinstance(value, memoryview):
                pieces.append(_piece(value))
            elif number == _TRAINER and isinstance(value, memoryview):
                kind = next((v for n, v in _fields(value) if n == _KIND and isinstance(v, int)), 1)
        if not pieces:
            raise ValueError("it has no pieces")
    except ValueError as error:
        raise CheckpointError(f"{path.name}: not a SentencePiece model: {error}") from error
    return Model(pieces, kind)


def _piece(data: memoryview) -> Piece:
    text, kind = "", 1
    for number, value in _fields(data):
        if number == _TEXT and isinstance(value, memoryview):
            text = bytes(value).decode()
        elif number == _KIND and isinstance(value, int):
            kind = value
    return Piece(text, kind)


def _fields(data: memoryview) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field; numbers of fixed length stay bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        if key & 7 == _VARINT:
            number, position = _varint(data, position)
            yield key >> 3, number
            continue
        if key & 7 == _BYTES:
            length, position = _varint(data, position)
        else:
            length = {_FIXED64: 8, _FIXED32: 4}.get(key & 7, -1)
        if length < 0 or position + length > len(data):
            raise ValueError(f"damaged at byte {position}")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    """The number at a position, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ValueError(f"damaged at byte {position}")
