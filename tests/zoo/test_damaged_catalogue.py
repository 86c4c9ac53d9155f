"""Whatever happens to the catalogue's bytes and rows: an error of ours that says what, no silence.

`verify` may call a zoo sound only if everything reads as it was written.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from blockllm.api.models import load_models
from blockllm.cli.main import app
from blockllm.core import Measurement
from blockllm.errors import BlockllmError, CorruptStore, ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.seals import seal_all
from tests.makers import make_checkpoint, make_lora

FLIPS = 200
LOSS = Measurement("lora", "base", 10.1, 10.0, 0.01, 0.99, 100, 64, "t", 1.0, {})
HOSTILE = (
    None, -5, 0, 1 << 62, 1e308, -1.5, "", "x\0y", b"\xff\xfe", "[" * 5000, "{}", "[-1]", "[1e99]",
    "null", "../../x", "\x1b[31m", "x" * 100_000, '{"kind":"lora"}',
)  # fmt: skip


class Damaged:
    """A small zoo whose catalogue a test damages; intact again before each case."""

    def __init__(self, root: Path) -> None:
        base = make_checkpoint(root / "base", num_hidden_layers=2, tokenizer=True)
        self.adapter = make_lora(base, root / "adapter")
        self._intact, self.root = root / "intact", root / "zoo"
        zoo = Zoo(self._intact)
        zoo.add("base", base)
        zoo.add("lora", self.adapter, base="base")
        zoo.record_loss(LOSS)
        zoo.record_finding("kind", "a", "b", LOSS)
        self.catalog = self.root / "catalog.sqlite"
        self.reset()
        self.bytes = self.catalog.read_bytes()
        self.packs = {p: p.read_bytes() for p in self.root.glob("packs/*/*")}
        self.before = state(Zoo(self.root))

    def reset(self) -> None:
        """Everything as it was."""
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self._intact, self.root)

    def execute(self, sql: str, *values: Any) -> bool:
        """Change the catalogue behind the zoo's back; False where its tables do not allow it."""
        with closing(sqlite3.connect(self.catalog, isolation_level=None)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = 1")
            try:
                return connection.execute(sql, values).rowcount != 0
            except (sqlite3.IntegrityError, OverflowError):
                return False

    def tables(self) -> Iterator[tuple[str, str]]:
        """Every column of every table."""
        with closing(sqlite3.connect(self.catalog)) as connection:
            names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
            for (table,) in names.fetchall():
                for row in connection.execute(f"PRAGMA table_info({table})").fetchall():
                    yield table, row[1]


def state(zoo: Zoo) -> Any:
    """All that the catalogue says."""
    with zoo.moment() as moment:
        served = load_models(moment, None)
        left_out = dict(served.left_out)
    targets = {name: zoo.targets(name) for name in ("base", "lora")}
    assets = {name: zoo.asset(name, "tokenizer.json") for name in ("base", "lora")}
    found = zoo.findings("kind", Measurement)
    return zoo.cards(), zoo.chains(), targets, assets, found, left_out, zoo.weight_bytes()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Damaged:
    return Damaged(tmp_path_factory.mktemp("damaged"))


def commands(zoo: Zoo, adapter: Path) -> list[Callable[[], object]]:
    """What commands and a server do, those that change the zoo last."""
    return [
        zoo.cards,
        zoo.chains,
        lambda: zoo.chain("lora"),
        lambda: zoo.add("again", adapter, base="base"),
        lambda: zoo.remove("lora"),
        zoo.gc,
    ]


def check(damaged: Damaged, changes: bool = True) -> bool:
    """Only errors of ours come out; returns whether `verify` saw that something is wrong."""
    try:
        zoo = Zoo(damaged.root)
        sound = zoo.verify().is_sound
    except ZooError as error:
        assert "\n" not in str(error) and str(damaged.root) in str(error), error
        return True
    if sound:
        assert state(zoo) == damaged.before, "verify calls a changed zoo sound"
    else:
        try:
            with zoo.moment() as moment:
                load_models(moment, None)
        except BlockllmError:
            pass
    for command in commands(zoo, damaged.adapter) if changes else ():
        try:
            command()
        except BlockllmError as error:
            assert str(error)
    return not sound


def check_packs(damaged: Damaged) -> None:
    """No pack is lost that an intact catalogue needs."""
    for path in damaged.packs:
        assert path.exists(), "gc removed a pack that was needed"


def test_flipped_bits(damaged: Damaged) -> None:
    """Bits of every region: the header, each page, in turn."""
    chooser = random.Random(7)
    seen = 0
    for index in range(FLIPS):
        damaged.reset()
        data = bytearray(damaged.bytes)
        start = len(data) * index // FLIPS
        place = chooser.randrange(100) if index % 8 == 0 else start + chooser.randrange(300)
        data[place % len(data)] ^= 1 << chooser.randrange(8)
        damaged.catalog.write_bytes(data)
        seen += check(damaged, changes=index % 10 == 0)
    assert seen > FLIPS // 10


def test_hostile_values_in_every_column(damaged: Damaged) -> None:
    chooser = random.Random(3)
    damaged.reset()
    columns = list(damaged.tables())
    assert len(columns) > 30
    for number, (table, column) in enumerate(columns):
        for value in chooser.sample(HOSTILE, 3):
            damaged.reset()
            changed = damaged.execute(
                f"UPDATE {table} SET {column} = ?1 WHERE {column} ="
                f" (SELECT max({column}) FROM {table}) AND {column} IS NOT ?1",
                value,
            )
            seen = check(damaged, changes=number % 5 == 0)
            assert seen or not changed, (table, column, value)


def test_a_negative_context_is_no_sound_zoo(damaged: Damaged) -> None:
    damaged.reset()
    damaged.execute("UPDATE model SET max_context = -5 WHERE name = 'lora'")
    zoo = Zoo(damaged.root)
    (problem,) = zoo.verify().problems
    assert problem.models == ("lora",) and "max_context" in problem.what
    base, lora = zoo.cards()
    assert not base.damaged and "max_context" in lora.damaged
    with zoo.moment() as moment:
        models = load_models(moment, None)
    assert models.names == ["base"] and "max_context" in models.left_out["lora"]
    with pytest.raises(CorruptStore, match="remove it and add it again"):
        zoo.chain("lora")
    command = ["--zoo", str(damaged.root)]
    assert CliRunner().invoke(app, ["zoo", "show", "base", *command]).exit_code == 0
    shown = CliRunner().invoke(app, ["zoo", "show", "lora", *command])
    assert isinstance(shown.exception, CorruptStore)
    listed = CliRunner().invoke(app, ["zoo", "ls", *command])
    assert listed.exit_code == 1 and "base" in listed.output and "max_context" in listed.output
    zoo.remove("lora")
    assert zoo.verify().is_sound


@pytest.mark.parametrize("name", ["org/model", "a b", "mödel", 'x"y\x1b[2J'])
def test_models_of_other_names_are_still_read(damaged: Damaged, name: str) -> None:
    """Names that `add` takes no more."""
    damaged.reset()
    with closing(sqlite3.connect(damaged.catalog, isolation_level=None)) as connection:
        connection.execute("UPDATE model SET name = ? WHERE name = 'lora'", [name])
        connection.execute("DELETE FROM measurement")
        seal_all(connection)
    zoo = Zoo(damaged.root)
    assert zoo.verify().is_sound
    assert [card.name for card in zoo.cards()] == ["base", name]
    with zoo.moment() as moment:
        assert load_models(moment, None).names == ["base", name]
    result = CliRunner().invoke(app, ["zoo", "show", name, "--zoo", str(damaged.root)])
    assert result.exit_code == 0 and "\x1b" not in result.output
    zoo.remove(name)
    assert [card.name for card in zoo.cards()] == ["base"]


@pytest.mark.parametrize("size", [0, 1, 50, 100, 4096, 5000, -4096])
def test_truncated(damaged: Damaged, size: int) -> None:
    damaged.reset()
    damaged.catalog.write_bytes(damaged.bytes[:size])
    assert check(damaged)
    check_packs(damaged)


def test_a_lost_catalogue_loses_no_packs(damaged: Damaged, tied: Path) -> None:
    damaged.reset()
    damaged.catalog.unlink()
    with pytest.raises(CorruptStore, match="is gone, but there are packs"):
        Zoo(damaged.root).add("new", tied)
    check_packs(damaged)


def test_missing_tables(damaged: Damaged) -> None:
    for table in sorted({table for table, _ in damaged.tables()}):
        damaged.reset()
        with closing(sqlite3.connect(damaged.catalog, isolation_level=None)) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(f"DROP TABLE {table}")
        assert check(damaged), table
        check_packs(damaged)


@pytest.mark.parametrize("version", [-1, 0, 1, 2, 3, 4, 6, 1 << 30])
def test_a_wrong_version(damaged: Damaged, version: int) -> None:
    damaged.reset()
    damaged.execute(f"PRAGMA user_version = {version}")
    assert check(damaged)
    check_packs(damaged)


def test_garbage_in_the_log(damaged: Damaged) -> None:
    chooser = random.Random(5)
    for size in (1, 31, 32, 4120, 100_000):
        for name in ("catalog.sqlite-wal", "catalog.sqlite-shm", "catalog.sqlite-journal"):
            damaged.reset()
            (damaged.root / name).write_bytes(chooser.randbytes(size))
            check(damaged)


def test_gc_removes_nothing_while_the_catalogue_is_damaged(damaged: Damaged) -> None:
    for change in (
        "UPDATE tensor SET pack = hash WHERE hash = (SELECT max(tensor) FROM layer_tensor)",
        "UPDATE asset SET name = upper(name)",
        "DELETE FROM target_tensor WHERE part = 'a'",
        "DELETE FROM layer_tensor",
    ):
        damaged.reset()
        assert damaged.execute(change)
        with pytest.raises(CorruptStore, match="nothing was removed"):
            Zoo(damaged.root).gc()
        check_packs(damaged)


def test_an_index_that_disagrees_with_its_table_costs_no_pack(damaged: Damaged) -> None:
    damaged.reset()
    with closing(sqlite3.connect(damaged.catalog, isolation_level=None)) as connection:
        connection.execute("DROP INDEX tensor_pack")
        connection.execute("CREATE INDEX tensor_pack ON tensor (dtype)")
        connection.execute("PRAGMA writable_schema = 1")
        connection.execute(
            "UPDATE sqlite_schema SET sql = 'CREATE INDEX tensor_pack ON tensor (pack)'"
            " WHERE name = 'tensor_pack'"
        )
    with pytest.raises(CorruptStore, match=r"nothing was removed.*tensor_pack"):
        Zoo(damaged.root).gc()
    check_packs(damaged)
