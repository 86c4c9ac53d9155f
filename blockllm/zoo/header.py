"""The header of a safetensors file, read without trusting it.

8 bytes: length N │ N bytes of JSON: {name: {dtype, shape, data_offsets}} │ the tensors' bytes
"""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple, NoReturn

from blockllm.errors import CheckpointError

# longest header accepted; the largest published checkpoints stay below 1 MB per file
MAX_HEADER_BYTES = 16 << 20
_MAX_DIMENSIONS = 8
_DTYPE_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


class Entry(NamedTuple):
    """One tensor of a file; `offset` counts from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_header(descriptor: int, where: str) -> dict[str, Entry]:
    """The tensors of an open safetensors file by name.

    Raises CheckpointError unless every byte behind the header belongs to exactly one tensor.
    """
    size = os.fstat(descriptor).st_size
    length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
    if size < 8 or length > size - 8:
        raise CheckpointError(f"{where}: truncated, or not a safetensors file")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(f"{where}: header length {length} is out of bounds")
    document = _parse(os.pread(descriptor, length, 8), where)
    document.pop("__metadata__", None)
    entries = {name: _entry(name, value, 8 + length, where) for name, value in document.items()}
    _check_layout(entries, 8 + length, size, where)
    return entries


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        document = json.loads(
            text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: damaged header: {error}") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{where}: damaged header: not a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _entry(name: str, value: Any, start: int, where: str) -> Entry:
    where = f"{where}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: needs dtype, shape and data_offsets, nothing else")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPE_BITS:
        raise CheckpointError(f"{where}: unknown dtype {str(dtype)[:40]!r}")
    if not _is_counts(shape) or len(shape) > _MAX_DIMENSIONS:
        raise CheckpointError(f"{where}: damaged shape")
    if not _is_counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: damaged offsets")
    begin, end = offsets
    bits = _DTYPE_BITS[dtype]
    for count in shape:
        bits *= count
    if bits != 8 * (end - begin):
        raise CheckpointError(f"{where}: {end - begin} bytes do not fit {dtype} {shape}")
    return Entry(dtype, tuple(shape), start + begin, end - begin)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_layout(entries: dict[str, Entry], start: int, size: int, where: str) -> None:
    position = start
    for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.nbytes)):
        if entry.offset != position:
            problem = "overlap" if entry.offset < position else "leave a hole"
            raise CheckpointError(f"{where}: tensors {problem} at byte {entry.offset}")
        position += entry.nbytes
    if position != size:
        raise CheckpointError(f"{where}: tensors end at byte {position}, the file at byte {size}")
