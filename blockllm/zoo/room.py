"""Room on the zoo's disk: what is free, and a reserve that lets `rm` and `gc` work on a full one.

SQLite needs room to delete: a log of the changed pages, and shared memory. The reserve has it.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from blockllm.errors import StoreFull, ZooError

# the disk is full, the quota used up, or the file larger than allowed
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHARED_MEMORY = 64 << 10  # bytes that SQLite takes beside its log, generously
# sizes of the catalogue: a transaction's log has each page once or, when memory is short, twice
_LEAST, _GIVEN = 2, 4
_WHAT_TO_DO = "free some, or remove models: `blockllm zoo rm NAME`, then `blockllm zoo gc`"


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write to the disk of a folder; quotas aside."""
    found = os.statvfs(folder)
    blocks = found.f_bavail if os.geteuid() else found.f_bfree  # root may use what is kept for it
    return blocks * found.f_frsize


def check_room(folder: Path, needed: int) -> None:
    """Raise StoreFull, with both numbers, unless so many bytes are free."""
    free = free_bytes(folder)
    if free < needed:
        raise StoreFull(
            f"no room on the disk of {folder}: {needed:,} bytes are needed, {free:,} are free;"
            f" {_WHAT_TO_DO}"
        )


def full(folder: Path) -> StoreFull:
    """The error for a disk, or a quota, that ended a write."""
    with suppress(OSError):
        return StoreFull(
            f"no room left on the disk of {folder} ({free_bytes(folder):,} bytes are free) or in a"
            f" quota; nothing was changed; {_WHAT_TO_DO}"
        )
    return StoreFull(f"no room left on the disk of {folder}; nothing was changed; {_WHAT_TO_DO}")


def read_only(folder: Path, why: str) -> ZooError:
    """The error for a zoo that can be read and not be written."""
    return ZooError(
        f"the zoo at {folder} cannot be changed: {why}; ls, show, verify, report and serve work"
    )


class Reserve:
    """A file of bytes that only deleting may use; under the write lock."""

    def __init__(self, path: Path, catalog: Path) -> None:
        self._path, self._catalog = path, catalog

    @property
    def is_short(self) -> bool:
        """Whether it is too small for a change of the whole catalogue."""
        size = self._path.stat().st_size if self._path.exists() else 0
        return size < self._wanted(_LEAST)

    def fill(self) -> None:
        """Make it large enough for now and some time, if there is room."""
        with suppress(OSError):
            try:
                with self._path.open("wb") as file:
                    file.write(os.urandom(self._wanted(_GIVEN)))  # no file system makes less of it
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                self._path.unlink()  # half of one would only stand in the way

    def _wanted(self, factor: int) -> int:
        size = self._catalog.stat().st_size if self._catalog.exists() else 0
        return _SHARED_MEMORY + factor * size

    def release(self) -> bool:
        """Give its room back; False if there was none."""
        try:
            self._path.unlink()
        except OSError:
            return False
        return True
