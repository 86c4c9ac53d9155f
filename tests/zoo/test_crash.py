"""Killed writers, writers at once, full disks: all or nothing."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Literal

import pytest

from blockllm.errors import StoreFull, ZooError
from blockllm.zoo import Zoo, records
from tests.makers import make_checkpoint
from tests.zoo.conftest import contents

KILLS = 21
SCRIPT = textwrap.dedent(
    """
    import os, signal, sys
    from blockllm.zoo import Zoo

    calls, limit = 0, int(sys.argv[4])

    def count(frame, event, argument):
        # every call into C (read, write, fsync, rename, SQL …) is a moment to die at
        global calls
        if event == "c_call":
            calls += 1
            if calls == limit:
                os.kill(os.getpid(), signal.SIGKILL)

    zoo = Zoo(sys.argv[1])
    print("ready", flush=True)
    sys.setprofile(count)
    zoo.add(sys.argv[2], sys.argv[3], format=sys.argv[5] or None)
    sys.setprofile(None)
    print(calls)
    """
)


def start(
    zoo: Path, name: str, source: Path, limit: int = 0, format: str = ""
) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(zoo), name, str(source), str(limit), format]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base and a sibling that shares half of its layers."""
    root = tmp_path_factory.mktemp("family")
    sizes = {"num_hidden_layers": 6, "hidden_size": 64, "intermediate_size": 160}
    base = make_checkpoint(root / "base", tokenizer=True, **sizes)
    sibling = make_checkpoint(
        root / "sibling", seed=1, copy_layers_from=base, copied_layers=(0, 1, 2), **sizes
    )
    return base, sibling


def check_after_kill(root: Path, process: subprocess.Popen[str], before: object) -> None:
    """The zoo is sound, and as before or with the whole model."""
    process.communicate()
    zoo = Zoo(root)
    assert zoo.verify().is_sound
    if len(zoo.cards()) == 2:
        zoo.remove("sibling")
    zoo.gc()
    assert contents(root) == before


@pytest.mark.parametrize("format", [None, "int8"])
def test_killed_at_any_call(
    tmp_path: Path, family: tuple[Path, Path], format: Literal["int8"] | None
) -> None:
    root = tmp_path / "zoo"
    zoo = Zoo(root)
    zoo.add("base", family[0], format=format)
    before = contents(root)
    process = start(root, "sibling", family[1], format=format or "")
    total = int(process.communicate()[0].split()[-1])
    zoo.remove("sibling")
    zoo.gc()
    chooser = random.Random(0)
    limits = [chooser.randrange(total // 2, total) for _ in range(KILLS - 1)]
    killed = 0
    for limit in [*limits, total]:
        process = start(root, "sibling", family[1], limit, format or "")
        check_after_kill(root, process, before)
        killed += process.returncode == -signal.SIGKILL
    assert killed >= KILLS - 1  # the last call of one run may not be reached by another
    assert zoo.add("sibling", family[1], format=format).num_shared_blocks == 3


def test_killed_at_any_time(tmp_path: Path, family: tuple[Path, Path]) -> None:
    root = tmp_path / "zoo"
    Zoo(root).add("base", family[0])
    before = contents(root)
    chooser = random.Random(1)
    for _ in range(KILLS // 2):
        process = start(root, "sibling", family[1])
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(chooser.uniform(0, 0.08))
        process.kill()
        check_after_kill(root, process, before)
    Zoo(root).add("sibling", family[1])


def test_killed_add_leaves_only_what_gc_removes(tmp_path: Path, llama: Path) -> None:
    total = int(start(tmp_path / "other", "model", llama).communicate()[0].split()[-1])
    root = tmp_path / "zoo"
    process = start(root, "model", llama, total * 9 // 10)
    process.communicate()
    assert list(root.glob("tmp/*/*"))
    zoo = Zoo(root)
    assert zoo.cards() == []
    assert zoo.add("model", llama).stored_bytes > 0
    assert not list((root / "tmp").iterdir())


def test_two_adds_of_one_content(tmp_path: Path, family: tuple[Path, Path]) -> None:
    root = tmp_path / "zoo"
    processes = [start(root, f"model-{i}", family[0]) for i in range(3)]
    for process in processes:
        assert process.wait(60) == 0, process.communicate()
    zoo = Zoo(root)
    assert [card.own_bytes for card in zoo.cards()] == [0, 0, 0]
    assert zoo.verify().is_sound
    chains = [chain.entries for chain in zoo.chains().values()]
    assert chains[0] == chains[1] == chains[2]
    for process in processes:
        process.communicate()


def test_two_adds_of_one_name(tmp_path: Path, family: tuple[Path, Path]) -> None:
    root = tmp_path / "zoo"
    processes = [start(root, "model", source) for source in (*family, family[0])]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1, 1]
    for code, text in zip(codes, errors, strict=True):
        assert ("NameTaken" in text) == (code == 1)
    assert Zoo(root).verify().is_sound


def test_readers_are_not_blocked(zoo: Zoo, family: tuple[Path, Path]) -> None:
    zoo.add("base", family[0])
    seen = []

    def look(activity: str, done: int, total: int) -> None:
        if done:
            seen.append(sorted(zoo.chains()))

    zoo.add("sibling", family[1], progress=look)
    assert len(seen) > 10
    assert all(names == ["base"] for names in seen)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("room", [0, 100_000])
def test_disk_full(
    zoo: Zoo, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, code: int, room: int
) -> None:
    before = contents(tmp_path / "zoo")
    write, left = os.write, [room]

    def limited(descriptor: int, data: bytes) -> int:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(code, os.strerror(code))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        with pytest.raises(StoreFull):
            zoo.add("model", llama)
    assert contents(tmp_path / "zoo") == before
    zoo.add("model", llama)


def test_disk_full_for_real(tmp_path: Path) -> None:
    """A limit on the size of files stands in for a small disk."""
    root = tmp_path / "zoo"
    Zoo(root)
    before = contents(root)
    large = make_checkpoint(tmp_path / "large", vocab_size=20_000)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    command = [sys.executable, "-c", SCRIPT, str(root), "model", str(large), "0", ""]
    run = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True)
    assert "StoreFull" in run.stderr
    assert contents(root) == before


@pytest.mark.parametrize("fault", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR])
def test_catalogue_cannot_be_written(
    zoo: Zoo, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    before = contents(tmp_path / "zoo")

    def fail(connection: sqlite3.Connection, record: object) -> None:
        connection.execute("INSERT INTO layer VALUES ('x', 'x')")
        error = sqlite3.OperationalError("made up")
        error.sqlite_errorcode = fault
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(records, "insert", fail)
        with pytest.raises(StoreFull if fault == sqlite3.SQLITE_FULL else ZooError):
            zoo.add("model", llama)
    assert contents(tmp_path / "zoo") == before


def test_heavy_libraries_stay_out() -> None:
    code = (
        "import sys, blockllm.zoo, blockllm.cli.zoo;"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
