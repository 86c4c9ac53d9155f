"""The zoo's folder: where files lie, how they get there whole, which process may write.

catalog.sqlite   lock   packs/ab/<name>.pack   assets/ab/<hash>.json   tmp/<stage>/<new files>
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from blockllm.errors import CorruptStore, ZooError
from blockllm.zoo.room import Reserve
from blockllm.zoo.staging import Stage, drop_stages, hold_stage, is_at


class Folder:
    """Paths of one zoo and the few operations on them that must survive a crash."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.catalog = root / "catalog.sqlite"
        self.temporary = root / "tmp"
        self.reserve = Reserve(root / "reserve", self.catalog)

    def check_usable(self) -> None:
        """Raise ZooError if the place holds something else than a zoo."""
        if self.root.exists() and not self.catalog.exists():
            strangers = [path.name for path in self.root.iterdir() if path.name not in _OWN]
            if strangers:
                raise ZooError(f"{self.root} is not a zoo: it holds {sorted(strangers)[0]!r}")

    def check_there(self) -> None:
        """Raise ZooError unless there is a zoo."""
        if not self.catalog.exists():
            found = "the folder is empty" if self.root.exists() else "the folder does not exist"
            raise ZooError(
                f"no zoo at {self.root}: {found}; the first `blockllm zoo add NAME PATH_OR_HUB_ID "
                f"--zoo {self.root}` makes one"
            )

    def check_catalog(self) -> None:
        """Raise CorruptStore if there are packs but nothing in the catalogue: the next `gc` would
        take them for what no model needs."""
        size = self.catalog.stat().st_size if self.catalog.exists() else 0
        if size < _LEAST_BYTES and self.stored():
            state = "empty" if self.catalog.exists() else "gone"
            raise CorruptStore(
                f"the catalogue {self.catalog} is {state}, but there are packs beside it: put a"
                " copy of it back, or make a new zoo in another folder"
            )

    def pack(self, name: str) -> Path:
        """Path of a pack; it need not exist."""
        return self.root / "packs" / name[:2] / f"{name}.pack"

    def asset(self, name: str) -> Path:
        """Path of an asset, named (hash).(suffix); it need not exist."""
        return self.root / "assets" / name[:2] / name

    def staging(self) -> AbstractContextManager[Stage]:
        """A place for new files, with or without the write lock; the zoo must be there."""
        return hold_stage(self.temporary)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the write lock of a zoo that is there; waits while another process or thread holds
        it. Raises ZooError if there is no zoo.
        """
        self.check_there()
        with self._locked():
            self.check_there()
            drop_stages(self.temporary)
            yield

    @contextmanager
    def still(self) -> Iterator[None]:
        """Let no writer in, without a right to write. Raises ZooError if there is no zoo."""
        self.check_there()
        try:
            file = (self.root / "lock").open("rb")
        except FileNotFoundError:  # a copy without it, which has no writers
            yield
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextmanager
    def growing(self, create: Callable[[], None]) -> Iterator[None]:
        """Hold the write lock of a zoo that may be absent: `create` then makes its catalogue. If
        the body fails, a zoo made for it is gone again.
        """
        absent = [path for path in (self.root, *self.root.parents) if not path.exists()]
        with self._locked(make=True):
            is_new = not self.catalog.exists()
            try:
                create()
                drop_stages(self.temporary)
                yield
            except BaseException:
                if is_new:
                    self._unmake(absent)
                raise

    @contextmanager
    def _locked(self, make: bool = False) -> Iterator[None]:
        while True:
            if make:
                self.root.mkdir(parents=True, exist_ok=True)
            try:
                file = (self.root / "lock").open("wb")
            except FileNotFoundError:
                # a failed first add has just removed the folder
                if not make:
                    self.check_there()
                continue
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not is_at(file.fileno(), self.root / "lock"):
                    continue  # the holder removed it with the zoo that it had made
                for name in _FOLDERS:
                    (self.root / name).mkdir(exist_ok=True)
                yield
                return

    def _unmake(self, absent: list[Path]) -> None:
        drop_stages(self.temporary)
        for path in self.root.glob("catalog.sqlite*"):
            remove(path)
        self.reserve.release()
        for path in (*self.root.glob("*/??"), *(self.root / name for name in _FOLDERS)):
            _remove_empty(path)
        remove(self.root / "lock")
        for path in absent:
            _remove_empty(path)

    def num_bytes(self) -> int:
        """Bytes of all files of the zoo."""
        return sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())

    def stored(self) -> list[Path]:
        """All packs and assets on disk."""
        return [*self.root.glob("packs/??/*.pack"), *self.root.glob("assets/??/*")]


_LEAST_BYTES = 100  # of an SQLite file: shorter ones are taken for new
_FOLDERS = ("packs", "assets", "tmp")
_OWN = {"lock", "reserve", *_FOLDERS, "catalog.sqlite-journal"}


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


def _remove_empty(folder: Path) -> None:
    with suppress(OSError):  # it holds something, or is gone
        folder.rmdir()


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
