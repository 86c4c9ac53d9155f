"""A zoo in a folder that cannot be written, as on a read-only mount, is read as it is."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

import blockllm.zoo.catalog
from blockllm.errors import ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.catalog import Catalog


def files(root: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def sealed(zoo: Zoo, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that says of itself that it cannot be written; tests run as root, whom no mode
    keeps out."""
    zoo.add("model", llama)
    monkeypatch.setattr(blockllm.zoo.catalog.os, "access", lambda path, mode: False)
    return tmp_path / "zoo"


def test_reading_makes_no_file_while_it_lasts(sealed: Path):
    before = files(sealed)
    with Catalog(sealed / "catalog.sqlite").reading() as connection:
        assert connection.execute("SELECT name FROM model").fetchall() == [("model",)]
        assert files(sealed) == before
    zoo = Zoo(sealed)
    with zoo.moment() as moment:
        assert moment.chains(["model"]) == zoo.chains()
    assert files(sealed) == before


def test_a_writers_log_is_read_where_there_is_one(sealed: Path):
    catalog = Catalog(sealed / "catalog.sqlite")
    writer = sqlite3.connect(sealed / "catalog.sqlite")
    with writer:
        writer.execute("UPDATE model SET name = 'renamed'")  # in the log, not yet in the file
    with catalog.reading() as connection:
        assert connection.execute("SELECT name FROM model").fetchall() == [("renamed",)]
    writer.close()


def test_writing_is_refused(sealed: Path):
    with (
        pytest.raises(ZooError, match="cannot be changed"),
        Catalog(sealed / "catalog.sqlite").writing() as connection,
    ):
        connection.execute("DELETE FROM model")
    assert [card.name for card in Zoo(sealed).cards()] == ["model"]
