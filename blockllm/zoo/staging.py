"""New files of a zoo before they are published: each writer has a folder of its own for them, and
needs no lock of the zoo to fill it. A locked file says that the writer lives.

tmp/<stage>/held   <new files>
"""

from __future__ import annotations

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HELD = "held"


class Stage:
    """A writer's folder; see `hold_stage`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def new_temporary(self) -> Path:
        """A fresh path for a file being written."""
        return self.root / uuid.uuid4().hex


@contextmanager
def hold_stage(temporary: Path) -> Iterator[Stage]:
    """A new stage in a zoo's folder of temporary files; at the end it is gone with what is left
    in it. Raises OSError.
    """
    while True:
        root = temporary / uuid.uuid4().hex
        root.mkdir()
        try:
            file = (root / _HELD).open("wb")
        except FileNotFoundError:
            temporary.stat()  # if that is gone too, there is nothing to wait for
            continue  # taken for a dead writer's
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not is_at(file.fileno(), root / _HELD):
                continue
            try:
                yield Stage(root)
            finally:
                shutil.rmtree(root)
            return


def drop_stages(temporary: Path) -> None:
    """Remove what killed writers left behind."""
    for root in temporary.iterdir():
        if not root.is_dir():  # of older programs
            root.unlink(missing_ok=True)
            continue
        try:
            file = (root / _HELD).open("r+b")
        except FileNotFoundError:
            shutil.rmtree(root, ignore_errors=True)
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(root, ignore_errors=True)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at this path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
