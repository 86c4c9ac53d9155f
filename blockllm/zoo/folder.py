"""The zoo's folder: where files lie, how they get there whole, who may write.

catalog.sqlite   lock   packs/ab/<name>.pack   assets/ab/<hash>.json   tmp/<files being written>
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from blockllm.errors import ZooError


class Folder:
    """Paths of one zoo and the few operations on them that must survive a crash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = root / "catalog.sqlite"
        self.temporary = root / "tmp"

    def create(self) -> None:
        """Make the folders; raises ZooError if the place holds something else."""
        if self.root.exists() and not self.catalog.exists():
            strangers = [path.name for path in self.root.iterdir() if path.name not in _OWN]
            if strangers:
                raise ZooError(f"{self.root} is not a zoo: it holds {sorted(strangers)[0]!r}")
        for name in ("packs", "assets", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def pack(self, name: str) -> Path:
        """Path of a pack; it need not exist."""
        return self.root / "packs" / name[:2] / f"{name}.pack"

    def asset(self, name: str) -> Path:
        """Path of an asset, named (hash).(suffix); it need not exist."""
        return self.root / "assets" / name[:2] / name

    def new_temporary(self) -> Path:
        """A fresh path for a file being written."""
        return self.temporary / uuid.uuid4().hex

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the zoo's write lock; waits while another process or thread holds it."""
        with (self.root / "lock").open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.temporary.mkdir(exist_ok=True)
            self.drop_temporary()
            yield

    def drop_temporary(self) -> int:
        """Remove what killed writers left behind; returns bytes. Only under the write lock."""
        return sum(remove(path) for path in self.temporary.iterdir())

    def stored(self) -> list[Path]:
        """All packs and assets on disk."""
        return [*self.root.glob("packs/??/*.pack"), *self.root.glob("assets/??/*")]


_OWN = {"lock", "packs", "assets", "tmp", "catalog.sqlite-journal"}


def publish(moves: Iterable[tuple[Path, Path]]) -> list[Path]:
    """Rename synced temporary files to their final names and sync the folders they enter.

    Returns the files that were not there before. After an error none of them is there.
    """
    new: list[Path] = []
    folders: set[Path] = set()
    try:
        for temporary, final in moves:
            final.parent.mkdir(parents=True, exist_ok=True)
            if not final.exists():
                new.append(final)
            temporary.replace(final)
            folders |= {final.parent, final.parent.parent}
        for folder in folders:
            _sync_folder(folder)
    except BaseException:
        for path in new:
            remove(path)
        raise
    return new


def remove(path: Path) -> int:
    """Delete a file if it is there; returns the bytes it had."""
    try:
        size = path.stat().st_size
        path.unlink()
    except FileNotFoundError:
        return 0
    return size


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
