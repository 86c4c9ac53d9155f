"""Checksums of what the catalogue says: a flipped bit in a name or a number is noticed.

Layers and packs are named by their content already; seals are for the rows that have no such name.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec
from blake3 import blake3

from blockllm.errors import CorruptStore

_MODEL = (
    "SELECT id, name, kind, family, parent, root, dtype, max_context, eos_ids, created, exact"
    " FROM model WHERE id = ?",
    "SELECT position, layer FROM model_layer WHERE model = ? ORDER BY position",
    "SELECT position, module, place, value, part, tensor FROM target"
    " LEFT JOIN target_tensor ON target = target.id WHERE model = ?"
    " ORDER BY position, module, place, part",
    "SELECT file, name FROM asset WHERE model = ? ORDER BY file",
    "SELECT reference, text, value FROM measurement WHERE model = ? ORDER BY reference, text",
)
FINDING = "SELECT kind, subject, object, value, created, seal FROM finding"


def seal_model(connection: sqlite3.Connection, model: int) -> None:
    """Write the checksum of a model's rows, after any change of them."""
    connection.execute(
        "UPDATE model SET seal = ? WHERE id = ?", [_model_seal(connection, model), model]
    )


def check_model(connection: sqlite3.Connection, model: int, seal: str) -> None:
    """Raise CorruptStore unless the rows of a model are those that were sealed."""
    if _model_seal(connection, model) != seal:
        raise CorruptStore("its rows in the catalogue are not what was written")


def finding_seal(*row: Any) -> str:
    """The checksum of a finding: its kind, subject, object, value and time."""
    return _digest([row])


def check_finding(*row: Any) -> None:
    """Raise CorruptStore unless a row of FINDING is what was sealed."""
    *values, seal = row
    if finding_seal(*values) != seal:
        kind, subject, object = (str(value)[:80] for value in values[:3])
        raise CorruptStore(
            f"table finding: {kind!r} of {subject!r} and {object!r} is not what was written;"
            " find it out again"
        )


def seal_all(connection: sqlite3.Connection) -> None:
    """Seal what a program without seals wrote."""
    for (model,) in connection.execute("SELECT id FROM model").fetchall():
        seal_model(connection, model)
    for *values, _ in connection.execute(FINDING).fetchall():
        connection.execute(
            "UPDATE finding SET seal = ? WHERE kind = ? AND subject = ? AND object = ?",
            [finding_seal(*values), *values[:3]],
        )


def _model_seal(connection: sqlite3.Connection, model: int) -> str:
    return _digest([connection.execute(sql, [model]).fetchall() for sql in _MODEL])


def _digest(rows: list[Any]) -> str:
    return str(blake3(msgspec.json.encode(rows)).hexdigest())
