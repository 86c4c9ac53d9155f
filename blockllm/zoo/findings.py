"""What was found out by computing: equivalent layers, surrogates, profiles. Typed by its maker."""

from __future__ import annotations

import sqlite3
import time
from typing import TypeVar

import msgspec

from blockllm.zoo.seals import FINDING, check_finding, finding_seal

Found = TypeVar("Found")


def insert(
    connection: sqlite3.Connection, kind: str, subject: str, object: str, value: msgspec.Struct
) -> None:
    """Add or replace a finding. Inside the caller's transaction."""
    row = [kind, subject, object, msgspec.json.encode(value).decode(), time.time()]
    sql = "INSERT OR REPLACE INTO finding VALUES (?, ?, ?, ?, ?, ?)"
    connection.execute(sql, [*row, finding_seal(*row)])


def read(
    connection: sqlite3.Connection, kind: str, type: type[Found]
) -> dict[tuple[str, str], Found]:
    """All findings of a kind by subject and object, oldest first. Raises CorruptStore for one that
    is not what was written or not of the type."""
    decoder = msgspec.json.Decoder(type)
    found = {}
    for row in connection.execute(f"{FINDING} WHERE kind = ? ORDER BY created", [kind]):
        check_finding(*row)
        _, subject, object, value, *_ = row
        found[subject, object] = decoder.decode(value)
    return found
