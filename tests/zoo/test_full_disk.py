"""On a full disk models can be removed, on a read-only one everything can be read.

Real small file systems where the tests may mount them; faults that are put in everywhere.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blockllm.api.models import load_models
from blockllm.cli.main import app
from blockllm.errors import StoreFull, ZooError
from blockllm.zoo import Zoo, room
from tests.makers import make_checkpoint, make_lora

KILLED = textwrap.dedent(
    """
    import os, signal, sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("INSERT INTO finding VALUES ('x', 'x', 'x', 'x', 1.0, 'x')")
    connection.execute("DELETE FROM finding WHERE kind = 'x'")
    os.kill(os.getpid(), signal.SIGKILL)
    """
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"), num_hidden_layers=2, tokenizer=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.geteuid() or not shutil.which("mount") or subprocess.run(command).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def make_zoo(root: Path, base: Path) -> Zoo:
    zoo = Zoo(root)
    zoo.add("base", base)
    zoo.add("lora", make_lora(base, root.parent / "adapter"), base="base")
    zoo.record_finding("kind", "a", "b", zoo.card("base"))
    return zoo


def fill(disk: Path) -> Path:
    """Take every byte that is left."""
    path = disk / "filling"
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
    return path


def stored(root: Path) -> list[Path]:
    """All files and folders but SQLite's own beside the catalogue, which are empty."""
    return sorted(path for path in root.rglob("*") if not path.name.startswith("catalog.sqlite-"))


def check_readable(root: Path) -> None:
    zoo = Zoo(root)
    assert [card.name for card in zoo.cards()] == ["base", "lora"]
    assert zoo.verify().is_sound
    with zoo.moment() as moment:
        assert load_models(moment, None).names == ["base", "lora"]
    for command in ("ls", "show lora", "verify"):
        result = CliRunner().invoke(app, ["zoo", *command.split(), "--zoo", str(root)])
        assert result.exit_code == 0, result.exception


def check_removal(root: Path) -> None:
    Zoo(root).remove("lora")
    assert Zoo(root).gc().num_files == 1
    assert [card.name for card in Zoo(root).cards()] == ["base"]
    assert Zoo(root).verify().is_sound


def test_a_full_disk(disk: Path, base: Path, tmp_path: Path) -> None:
    root = disk / "zoo"
    make_zoo(root, base)
    filling = fill(disk)
    files = stored(root)
    check_readable(root)
    large = make_checkpoint(tmp_path / "large", vocab_size=4000)
    with pytest.raises(StoreFull, match="free"):
        Zoo(root).add("large", large)
    assert stored(root) == files
    check_removal(root)
    filling.unlink()
    Zoo(root).add("lora", make_lora(base, tmp_path / "adapter"), base="base")
    assert not room.Reserve(root / "reserve", root / "catalog.sqlite").is_short


def test_a_full_disk_with_a_killed_writers_log(disk: Path, base: Path) -> None:
    root = disk / "zoo"
    make_zoo(root, base)
    subprocess.run([sys.executable, "-c", KILLED, str(root / "catalog.sqlite")])
    (root / "catalog.sqlite-shm").unlink()
    assert (root / "catalog.sqlite-wal").stat().st_size
    fill(disk)
    check_readable(root)
    check_removal(root)


@pytest.mark.parametrize("is_clean", [True, False])
def test_a_read_only_disk(disk: Path, base: Path, is_clean: bool) -> None:
    root = disk / "zoo"
    make_zoo(root, base)
    if not is_clean:
        subprocess.run([sys.executable, "-c", KILLED, str(root / "catalog.sqlite")])
        (root / "catalog.sqlite-shm").unlink()
        assert (root / "catalog.sqlite-wal").stat().st_size
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    check_readable(root)
    for write in (
        lambda: Zoo(root).remove("lora"),
        lambda: Zoo(root).gc(),
        lambda: Zoo(root).add("again", base),
    ):
        with pytest.raises(ZooError, match=r"cannot be changed: .*; ls, show"):
            write()


def test_the_bytes_that_are_missing_are_said(
    zoo: Zoo, tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda folder: 1234)
    with pytest.raises(StoreFull) as caught:
        zoo.add("base", base)
    needed = re.search(r"([\d,]+) bytes are needed, 1,234 are free", str(caught.value))
    assert needed and int(needed[1].replace(",", "")) > 10_000
    assert not (tmp_path / "zoo").exists()


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_WRITE])
def test_the_reserve_is_released_for_what_frees_space(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """SQLite finds no room until the reserve is gone."""
    root = tmp_path / "zoo"
    zoo = make_zoo(root, base)
    assert (root / "reserve").stat().st_size > 2 * (root / "catalog.sqlite").stat().st_size
    connect = sqlite3.connect

    def limited(*arguments: object, **options: object) -> sqlite3.Connection:
        if (root / "reserve").exists():
            error = sqlite3.OperationalError("made up")
            error.sqlite_errorcode = code
            raise error
        return connect(*arguments, **options)  # type: ignore[call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", limited)
        zoo.remove("lora")
        assert (root / "reserve").exists()  # filled again
        assert zoo.gc().num_files == 1
    assert zoo.verify().is_sound
