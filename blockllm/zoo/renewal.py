"""Facts that catalogues of older formats lack, read from the zoo's own files."""

from __future__ import annotations

import logging
import sqlite3

import msgspec

from blockllm.errors import ZooError
from blockllm.zoo.assets import find_files
from blockllm.zoo.folder import Folder
from blockllm.zoo.records import Record, embedding_rows
from blockllm.zoo.seals import seal_all
from blockllm.zoo.snapshot import Snapshot
from blockllm.zoo.text.facts import TextFacts, read_facts

logger = logging.getLogger(__name__)


_KNOWS_ENDS = 4  # the first format that looked for end tokens everywhere


def renew(folder: Folder, connection: sqlite3.Connection, version: int) -> None:
    """Bring what a format before this one wrote up to date. Inside the caller's transaction."""
    if version < _KNOWS_ENDS:
        renew_ends(folder, connection)
    seal_all(connection)


def renew_ends(folder: Folder, connection: sqlite3.Connection) -> None:
    """Add the end tokens that formats before 4 did not look for: an adapter's own, and those that
    only tokenizer files name. What config.json says beside generation_config.json is not known any
    more. Inside the caller's transaction.
    """
    snapshot = Snapshot(connection, sealed=False)
    ends: dict[str, tuple[int, ...]] = {}
    for name, record in snapshot.records.items():  # oldest first: a base before its adapters
        facts = _facts(folder, snapshot, record)
        # a compressed fine-tune is stored as its base's delta but ends as it did itself
        is_adapter = record.parent is not None and record.kind != "compressed"
        if is_adapter and record.parent in ends:
            facts = facts._replace(ends=facts.ends + ends[record.parent])
        else:
            facts = facts._replace(ends=record.eos_ids + facts.ends)
        ends[name] = facts.ends_within(embedding_rows(record))
        text = msgspec.json.encode(ends[name]).decode()
        connection.execute("UPDATE model SET eos_ids = ? WHERE name = ?", [text, name])


def _facts(folder: Folder, snapshot: Snapshot, record: Record) -> TextFacts:
    if not record.assets:
        return TextFacts()
    files = find_files({}, snapshot.assets(record.name), folder)
    try:
        return read_facts(files, record.assets, record.family)
    except (ZooError, OSError) as error:
        logger.warning("model %r keeps its end tokens %s: %s", record.name, record.eos_ids, error)
        return TextFacts()
