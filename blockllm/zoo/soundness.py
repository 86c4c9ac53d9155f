"""Whether the catalogue is what was written: by SQLite's checks, seals, digests, packs' names."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from blockllm.errors import CorruptStore
from blockllm.zoo.digest import pack_name
from blockllm.zoo.reports import Problem
from blockllm.zoo.seals import FINDING, check_finding, check_model
from blockllm.zoo.snapshot import Snapshot

_MOST = 20  # problems that SQLite lists
_CATALOG = "catalogue"


def find_problems(connection: sqlite3.Connection, snapshot: Snapshot) -> Iterator[Problem]:
    """Everything that is damaged in the catalogue, as far as it can be read."""
    try:
        yield from _structure(connection)
        yield from _rows(connection, snapshot)
    except sqlite3.DatabaseError as error:
        yield Problem(_CATALOG, f"cannot be read further: {error}", ())


def check_models(connection: sqlite3.Connection) -> None:
    """Raise CorruptStore unless indexes agree with tables, and the rows of all models and layers
    are what was written."""
    snapshot = Snapshot(connection)
    damaged = dict(snapshot.unread)
    for model, name, seal in connection.execute("SELECT id, name, seal FROM model").fetchall():
        try:
            check_model(connection, model, seal)
        except CorruptStore as error:
            damaged.setdefault(str(name), f"model {str(name)!r} is damaged: {error}; remove it")
    reasons = [*damaged.values(), *(f"{where}: {what}" for where, what in snapshot.damage.items())]
    reasons += [problem.what for problem in _structure(connection)]
    if reasons:
        raise CorruptStore(f"nothing was removed: the catalogue is damaged. {reasons[0]}")


def check_packs(connection: sqlite3.Connection) -> set[str]:
    """The names of all packs. Raises CorruptStore unless each follows from the pack's tensors."""
    found: dict[str, list[tuple[int, str]]] = {}
    for pack, offset, tensor in connection.execute("SELECT pack, offset, hash FROM tensor"):
        found.setdefault(pack, []).append((offset, tensor))
    for pack, places in found.items():
        if pack_name(sorted(places)) != pack:
            raise CorruptStore(
                f"nothing was removed: the catalogue's list of the tensors in pack {pack} is"
                " damaged; `zoo verify` names the models to remove"
            )
    return set(found)


def _structure(connection: sqlite3.Connection) -> Iterator[Problem]:
    for (text,) in connection.execute(f"PRAGMA integrity_check({_MOST})"):
        if text != "ok":
            yield Problem(_CATALOG, str(text), ())
    for table, row, target, _ in connection.execute("PRAGMA foreign_key_check"):
        yield Problem(_CATALOG, f"table {table}, row {row}: what it names in {target} is gone", ())


def _rows(connection: sqlite3.Connection, snapshot: Snapshot) -> Iterator[Problem]:
    for where, what in snapshot.damage.items():
        yield Problem(where, what, ())
    for name, what in snapshot.damaged.items():
        yield Problem(f"model {name}", what, (name,))
    for row in connection.execute(FINDING):
        try:
            check_finding(*row)
        except CorruptStore as error:
            yield Problem("finding", str(error), ())
