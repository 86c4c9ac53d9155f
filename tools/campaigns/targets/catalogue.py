"""The zoo's own files: the catalogue's bytes and values, and packs."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from blockllm.core import Measurement
from blockllm.errors import ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.pinned import PinnedZoo
from tools.campaigns import makings
from tools.campaigns.documents import put
from tools.campaigns.draws import Draws, flipped
from tools.campaigns.oracle import Target

TABLES = (
    "model", "tensor", "layer", "layer_tensor", "model_layer", "target", "target_tensor", "asset",
    "measurement", "finding",
)  # fmt: skip
WORDS = (
    "", "base", "lora", "full", "[]", "[1]", "[-1]", "[1e99]", "{}", "null", '{"kind":"lora"}',
    "x" * 64, "F32", "I8", "BF16", "../../x", "[0]", "[99999999999]", '{"kind":"x"}',
    "tokenizer.json",
)  # fmt: skip


def _reads(zoo: Zoo) -> list[Callable[[], object]]:
    """What commands and servers ask a zoo."""

    def moment() -> None:
        with zoo.moment() as now:
            names = [card.name for card in now.cards()]
            chains = now.chains(names)
            for name in chains:
                now.asset(name, "tokenizer.json")
            PinnedZoo(zoo._folder.root, chains).gone()

    return [
        zoo.cards,
        zoo.chains,
        moment,
        zoo.weight_bytes,
        zoo.verify,
        lambda: zoo.targets("lora"),
        lambda: zoo.layers("base"),
        lambda: zoo.findings("profile", Measurement),
        lambda: zoo.asset("lora", "chat_template.jinja"),
    ]


def _ask_all(root: Path, draws: Draws) -> None:
    """Ask everything; at times remove and collect as well. The last of our own errors goes out."""
    wrong = ""  # not the error: its frames would keep SQLite's statements open
    zoo = Zoo(root)
    for read in _reads(zoo):
        try:
            read()
        except ZooError as error:
            wrong = str(error) or "no message"
    if not draws.below(4):
        with contextlib.suppress(ZooError):
            zoo.remove("lora")
        with contextlib.suppress(ZooError):
            zoo.gc()
    if wrong:
        raise ZooError(wrong)


class _Copy:
    """A zoo to damage; intact again before each input."""

    def __init__(self, scratch: Path, name: str) -> None:
        self._intact, self.root = scratch / "zoo", scratch / name
        makings.zoo(scratch)
        self.catalog = self.root / "catalog.sqlite"
        self._data = (self._intact / "catalog.sqlite").read_bytes()
        self.reset()

    @property
    def data(self) -> bytes:
        """The intact catalogue."""
        return self._data

    def reset(self) -> None:
        """Everything as it was."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._intact, self.root)

    def packs(self) -> list[Path]:
        """Its packs in a fixed order."""
        return sorted(self.root.glob("packs/*/*.pack"))

    def restore(self, intact: dict[Path, bytes]) -> None:
        """The catalogue as it was, and files that were removed or changed."""
        for log in self.root.glob("catalog.sqlite-*"):
            log.unlink()
        put(self.catalog, self._data)
        for path, data in intact.items():
            if not path.exists() or path.stat().st_size != len(data):
                path.parent.mkdir(exist_ok=True)
                put(path, data)


def catalogue_bytes(scratch: Path) -> Target:
    """The SQLite file with some bytes changed."""
    copy = _Copy(scratch, "catalogue-bytes")
    intact = _stored(copy.root)

    def run(data: bytes) -> None:
        draws = Draws(data)
        copy.restore(intact)
        put(copy.catalog, flipped(copy.data, draws) if draws.below(16) else draws.rest())
        _ask_all(copy.root, draws)

    return Target((b"\1\1\7\0\0\0\5", b"\1\4\0\2\1\1\2\x09\0", b"\0SQLite format 3\0"), run, 256)


def catalogue_values(scratch: Path) -> Target:
    """Rows with other values in them, rows that lack, rows twice."""
    copy = _Copy(scratch, "catalogue-values")
    intact = _stored(copy.root)
    columns = _columns(copy.catalog)

    def run(data: bytes) -> None:
        draws = Draws(data)
        copy.restore(intact)
        with contextlib.closing(sqlite3.connect(copy.catalog)) as connection:
            for _ in range(1 + draws.below(3)):
                with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeEncodeError):
                    _change(connection, columns, draws)
            connection.commit()
        _ask_all(copy.root, draws)

    seeds = [bytes([0, i, j, 1, j, 2, i]) for i in range(len(TABLES)) for j in range(0, 12, 3)]
    return Target(tuple(seeds), run, 64)


def _change(connection: sqlite3.Connection, columns: dict[str, list[str]], draws: Draws) -> None:
    table = draws.pick(TABLES)
    column = draws.pick(columns[table])
    kind = draws.below(8)
    place = f"(SELECT {column} FROM {table} ORDER BY 1 LIMIT 1 OFFSET {draws.below(12)})"
    if kind == 0:
        connection.execute(f"DELETE FROM {table} WHERE {column} = {place}")
    elif kind == 1:
        other = draws.pick(columns[table])
        connection.execute(f"UPDATE {table} SET {column} = {other} WHERE {column} = {place}")
    elif kind == 2:
        version = draws.pick((0, 1, 2, 3, 4, 5, 99, -1))
        connection.execute(f"PRAGMA user_version = {version}")
    else:
        value = draws.number() if kind < 5 else draws.text(WORDS)
        sql = f"UPDATE {table} SET {column} = ? WHERE {column} = {place}"
        connection.execute(sql, [value])


def packs(scratch: Path) -> Target:
    """Packs with bytes changed, cut or longer: `verify` names what is damaged, all else serves."""
    copy = _Copy(scratch, "packs")
    intact = _stored(copy.root)

    def run(data: bytes) -> None:
        draws = Draws(data)
        copy.restore(intact)
        path = draws.pick(copy.packs())
        changed = flipped(intact[path], draws)
        put(path, changed)
        zoo = Zoo(copy.root)
        report = zoo.verify()
        assert bool(report.problems) == (changed != intact[path]), "verify missed a change"
        PinnedZoo(copy.root, zoo.chains()).gone()
        put(path, intact[path])

    return Target((b"\0\1\0\0\0\0\0\7", b"\1\2\x09\0\0\2"), run, 64)


def _stored(root: Path) -> dict[Path, bytes]:
    """Packs and assets by path."""
    files = [*root.glob("packs/*/*"), *root.glob("assets/*/*")]
    return {path: path.read_bytes() for path in files}


def _columns(catalog: Path) -> dict[str, list[str]]:
    with contextlib.closing(sqlite3.connect(catalog)) as connection:
        return {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            for table in TABLES
        }
