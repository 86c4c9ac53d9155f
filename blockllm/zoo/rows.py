"""Rows of the catalogue as typed values: nothing is used that has not been checked.

SQLite keeps bytes, not promises: after a flipped bit a column of text may hold a number, and a
number may be negative.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from blockllm.core import DTYPE_BYTES, Tensor
from blockllm.errors import CorruptStore

Row = TypeVar("Row", bound=msgspec.Struct)
Value = TypeVar("Value")

_MAX_BYTES = 1 << 50  # of one tensor, far above any
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
# any name that a zoo could ever be given; new ones are narrower, see source.check_name
ModelName = Annotated[str, Meta(min_length=1, max_length=1024)]
Word = Annotated[str, Meta(min_length=1, max_length=200)]
Index = Annotated[int, Meta(ge=0, le=1 << 20)]
Shape = Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 40)], ...], Meta(max_length=8)]
TokenIds = Annotated[tuple[Annotated[int, Meta(ge=0, lt=1 << 31)], ...], Meta(max_length=1 << 16)]


class ModelRow(msgspec.Struct, frozen=True, array_like=True):
    """One model without its layers, targets and files."""

    id: int
    name: ModelName
    kind: Word
    family: Word
    parent_id: int | None
    parent: ModelName | None
    root: Annotated[str, Meta(max_length=1 << 16)]
    dtype: Word
    max_context: Annotated[int, Meta(ge=1, le=1 << 40)]
    eos_ids: str
    created: Annotated[float, Meta(ge=0, le=1e12)]
    exact: Annotated[int, Meta(ge=0, le=1)]
    seal: str


MODEL_COLUMNS = (
    "m.id, m.name, m.kind, m.family, m.parent, p.name, m.root, m.dtype, m.max_context, m.eos_ids,"
    " m.created, m.exact, m.seal FROM model m LEFT JOIN model p ON p.id = m.parent"
)


class TensorRow(msgspec.Struct, frozen=True, array_like=True):
    """Where one tensor lies."""

    hash: Digest
    dtype: Literal["F32", "BF16", "F16", "I8", "U8", "I32"]
    shape: str
    pack: Digest
    offset: Annotated[int, Meta(ge=0, le=_MAX_BYTES, multiple_of=64)]


class TargetRow(msgspec.Struct, frozen=True, array_like=True):
    """What a model changes at one module, without the tensors."""

    id: int
    position: Index
    module: Word
    value: str


class AssetRow(msgspec.Struct, frozen=True, array_like=True):
    """A text file of a model, and its name among the zoo's files."""

    file: Annotated[str, Meta(pattern=r"^\w[\w.-]{0,99}$")]
    name: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}(\.\w{1,16})?$")]


def check(row: Sequence[Any], kind: type[Row], table: str) -> Row:
    """A row as a typed value. Raises CorruptStore, naming table, row and column."""
    try:
        return msgspec.convert(row, kind)
    except msgspec.ValidationError as error:
        text = re.sub(r"\$\[(\d+)\]", lambda m: kind.__struct_fields__[int(m[1])], str(error))
        raise CorruptStore(f"table {table}, row {str(row[0])[:80]!r}: {text}") from error


def decode(text: str, kind: Any, where: str) -> Any:
    """JSON of the catalogue as a value of a type. Raises CorruptStore, naming the place."""
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CorruptStore(f"{where}: {error}") from error


def make_tensor(*row: Any) -> Tensor:
    """A tensor of its row: hash, dtype, shape, pack, offset. Raises CorruptStore."""
    found = check(row, TensorRow, "tensor")
    shape = decode(found.shape, Shape, f"table tensor, row {found.hash!r}, shape")
    count = DTYPE_BYTES[found.dtype]
    for size in shape:
        count *= size
    if count > _MAX_BYTES:
        raise CorruptStore(f"table tensor, row {found.hash!r}, shape: {shape} has too many bytes")
    return Tensor(found.hash, found.dtype, shape, found.pack, found.offset)
