"""The C structs of native programs, described once.

`write_header` writes `structs.h` from this table; a test holds the two together. The library says
where its compiler put every field, and loading it fails if that is not where ctypes puts it.
"""

from __future__ import annotations

import ctypes
import re
from enum import IntEnum
from pathlib import Path
from typing import Any, cast

from blockllm.errors import EngineError

HEADER = Path(__file__).with_name("structs.h")


class Register(IntEnum):
    """Rows of intermediate results. Every op reads and writes some of them."""

    TOKENS = 0  # ids, what a program behind an embedding begins with
    STREAM = 1  # the residual stream [rows, hidden]
    NORMED = 2  # what linears read; every norm writes it, and of one row each thread has its own
    WIDE = 3  # q, k, v side by side, or gate and up
    INNER = 4  # what attention or the gate leaves
    OUTPUT = 5  # of attention or MLP, before it joins the stream
    LOGITS = 6


class OpCode(IntEnum):
    """What an op does. `hop.cpp` and `row.cpp` have a function for each."""

    LOOK_UP = 0
    NORM = 1
    NORM_HEADS = 2
    LINEAR = 3
    WRITE = 4
    ATTEND = 5
    KEEP = 6
    GATE = 7
    ADD = 8
    GATE_RELU = 9


Field = tuple[str, str, str]  # name, C type, meaning

# In order: a struct may have fields of those before it.
TABLE: dict[str, tuple[Field, ...]] = {
    "Matrix": (
        ("weights", "const void*", "packed panels of a linear; rows of a table that is looked up"),
        ("code", "int64_t", "of the weights' type, as of linear_run; 3: int8"),
        ("scale", "const float*", "[outputs] of int8"),
        ("offsets", "const int32_t*", "[outputs] of int8"),
        ("bias", "const float*", "[outputs] or null"),
        ("inputs", "int64_t", "of a table its rows"),
        ("outputs", "int64_t", "of a table its columns"),
        ("adapters", "const void*", "as lora_run takes them, or null"),
    ),
    "NativeOp": (
        ("code", "int64_t", "an OpCode"),
        ("source", "int64_t", "register that is read"),
        ("target", "int64_t", "register that is written"),
        ("added", "int64_t", "register that the target is added to as well, or -1"),
        ("matrix", "Matrix", "of a linear or table"),
        ("weight", "const float*", "of a norm, [width] or [dim]"),
        ("eps", "double", "of a norm"),
        ("width", "int64_t", "floats from a row of the source to the next"),
        ("first", "int64_t", "first head that is normed"),
        ("heads", "int64_t", "heads of queries, or those that are normed"),
        ("kv_heads", "int64_t", "heads of keys and of values"),
        ("dim", "int64_t", "of a head"),
        ("window", "int64_t", "tokens that attention sees; 0: all"),
        ("scale", "double", "of attention's scores"),
    ),
    "LayerOps": (
        ("ops", "const NativeOp*", "one layer's"),
        ("count", "int64_t", "how many"),
    ),
    "Program": (
        ("layers", "const LayerOps*", "in order"),
        ("count", "int64_t", "of layers"),
        ("last", "int64_t", "layer behind whose attention rows may be dropped; -1: none"),
        ("linears", "int64_t", "of all layers"),
        ("result", "int64_t", "register that the caller gets"),
        ("inputs", "int64_t", "most inputs of a linear or norm"),
        ("widths", f"int64_t[{len(Register)}]", "floats per row of each register"),
    ),
    "KVAccess": (
        ("keys", "float*", "of the first layer within the pages; strides are in floats"),
        ("page_size", "int64_t", "tokens"),
        ("page_stride", "int64_t", "from a page to the next"),
        ("layer_stride", "int64_t", "from a layer within a page to the next"),
        ("value_stride", "int64_t", "from keys to values"),
        ("layers_per_page", "int64_t", "layers of a bundle"),
        ("cos", "const float*", "[.., dim]"),
        ("sin", "const float*", "[.., dim]"),
        ("rotations", "const int64_t*", "[rows] which of them; null: in order of the rows"),
        ("write_pages", "const int64_t*", "[bundles, rows], bundles lie write_stride apart"),
        ("write_stride", "int64_t", ""),
        ("write_offsets", "const int64_t*", "[rows]"),
        ("tables", "const int32_t*", "[sequences, bundles, width]"),
        ("bundles", "int64_t", ""),
        ("width", "int64_t", "pages of a sequence"),
        ("tiles", "const int32_t*", "[num_tiles, 4] runs of rows of one sequence"),
        ("num_tiles", "int64_t", ""),
        ("members", "const int64_t*", "[singles] whose the single rows are; null: one of each"),
        ("where", "const int64_t*", "[singles] which rows they are"),
        ("contexts", "const int64_t*", "[singles] tokens that they see"),
        ("singles", "int64_t", "rows that are attended to one by one"),
    ),
}  # fmt: skip

_Fields = list[tuple[str, type]]
_known: dict[str, type] = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}


def _fields(struct: str) -> _Fields:
    return [(name, _ctype(c_type)) for name, c_type, _ in TABLE[struct]]


def _ctype(c_type: str) -> type:
    if c_type.endswith("*"):
        return ctypes.c_void_p
    name, count = _array(c_type)
    element: Any = _known[name]
    return cast(type, element * count if count else element)


def _array(c_type: str) -> tuple[str, int]:
    """The element's type and how many; none for what is no array."""
    match = re.fullmatch(r"(\w+)\[(\d+)\]", c_type)
    return (match[1], int(match[2])) if match else (c_type, 0)


class Matrix(ctypes.Structure):
    """Weights of a linear, or a table."""

    _fields_ = _fields("Matrix")


_known["Matrix"] = Matrix


class NativeOp(ctypes.Structure):
    """An op with its registers and weights; what it has no use for is zero."""

    _fields_ = _fields("NativeOp")


class LayerOps(ctypes.Structure):
    """The ops of one layer."""

    _fields_ = _fields("LayerOps")


class Program(ctypes.Structure):
    """Neighbouring layers."""

    _fields_ = _fields("Program")


class KVAccess(ctypes.Structure):
    """Where the rows of a hop read and write KV, for all its layers."""

    _fields_ = _fields("KVAccess")


STRUCTS: tuple[type[ctypes.Structure], ...] = (Matrix, NativeOp, LayerOps, Program, KVAccess)


def layout(struct: type[ctypes.Structure]) -> list[int]:
    """Size, and offset of each field, in bytes."""
    names = [field[0] for field in struct._fields_]
    return [ctypes.sizeof(struct), *(getattr(struct, name).offset for name in names)]


def check_layouts(
    library: ctypes.CDLL, structs: tuple[type[ctypes.Structure], ...] = STRUCTS
) -> None:
    """Raises EngineError where the header is not this table, or the library's compiler lays a
    struct out in another way."""
    if HEADER.read_text(encoding="utf-8") != header():
        raise EngineError("structs.h is not what structs.py says: call structs.write_header()")
    count = sum(len(layout(struct)) for struct in structs)
    found = list((ctypes.c_int64 * count).in_dll(library, "struct_layouts"))
    for struct in structs:
        wanted = layout(struct)
        own, found = found[: len(wanted)], found[len(wanted) :]
        if own != wanted:
            raise EngineError(
                f"the CPU kernels lay struct {struct.__name__} out as {own} (size and offsets in "
                f"bytes), Python as {wanted}: use a compiler of this machine's own ABI (CXX=g++)"
            )


def header() -> str:
    """What `structs.h` says."""
    lines = ["// Written by structs.py; do not edit. What a native call knows, in 8-byte fields."]
    lines += ["#pragma once", "", "#include <cstddef>", "#include <cstdint>", ""]
    lines += ["namespace blockllm {", ""]
    lines += [f"constexpr int64_t REGISTERS = {len(Register)};"]
    for codes in (Register, OpCode):
        names = [f"    {each.name} = {each.value}," for each in codes]
        lines += [f"enum {codes.__name__} : int64_t {{", *names, "};"]
    for struct, fields in TABLE.items():
        lines += [f"struct {struct} {{", *map(_declaration, fields), "};"]
    lines += ["", "// size of each struct, and offsets of its fields", "#define STRUCT_LAYOUTS \\"]
    layouts = [_layout_text(struct) for struct in TABLE]
    return "\n".join([*lines, ", \\\n".join(layouts), "", "}  // namespace blockllm", ""])


def _declaration(field: Field) -> str:
    name, c_type, meaning = field
    element, count = _array(c_type)
    text = f"    {element} {name}[{count}];" if count else f"    {c_type} {name};"
    return f"{text}  // {meaning}" if meaning else text


def _layout_text(struct: str) -> str:
    offsets = [f"offsetof({struct}, {name})" for name, _, _ in TABLE[struct]]
    return "    " + ", \\\n    ".join([f"sizeof({struct})", *offsets])


def write_header() -> None:
    """Write `structs.h`. The next load of the kernels builds them anew."""
    HEADER.write_text(header(), encoding="utf-8")
