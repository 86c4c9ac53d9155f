"""What was found out by computing: equivalent layers, surrogates, profiles. Typed by its maker."""

from __future__ import annotations

import sqlite3
import time
from typing import TypeVar

import msgspec

Found = TypeVar("Found")


def insert(
    connection: sqlite3.Connection, kind: str, subject: str, object: str, value: msgspec.Struct
) -> None:
    """Add or replace a finding. Inside the caller's transaction."""
    connection.execute(
        "INSERT OR REPLACE INTO finding VALUES (?, ?, ?, ?, ?)",
        [kind, subject, object, msgspec.json.encode(value).decode(), time.time()],
    )


def read(
    connection: sqlite3.Connection, kind: str, type: type[Found]
) -> dict[tuple[str, str], Found]:
    """All findings of a kind by subject and object, oldest first."""
    decoder = msgspec.json.Decoder(type)
    sql = "SELECT subject, object, value FROM finding WHERE kind = ? ORDER BY created"
    rows = connection.execute(sql, [kind])
    return {(subject, object): decoder.decode(value) for subject, object, value in rows}
