"""Files of a folder that is not the zoo's own, opened without trusting what lies there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from blockllm.errors import CheckpointError


def is_there(path: Path) -> bool:
    """Whether the folder has an entry of this name, also one that cannot be opened."""
    return os.path.lexists(path)


def open_foreign(path: Path) -> int:
    """A descriptor of a regular file, opened without waiting for a writer.

    Raises CheckpointError for pipes, devices and folders, and for a link that leaves the folder;
    links of a hub's snapshot may lead to that cache's blobs.
    """
    try:
        target = _follow(path) if path.is_symlink() else path
        # without O_NONBLOCK a named pipe in the folder would block for ever
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW
        descriptor = os.open(target, flags)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise CheckpointError(f"{path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path}: not a regular file")
    return descriptor


def read_foreign(path: Path, max_bytes: int) -> bytes:
    """The bytes of a file of at most `max_bytes`, opened as `open_foreign` does; raises
    CheckpointError."""
    data = read_start(path, max_bytes + 1)
    if len(data) > max_bytes:
        raise CheckpointError(f"{path}: longer than {max_bytes} bytes")
    return data


def read_start(path: Path, num_bytes: int) -> bytes:
    """The first bytes of a file, opened as `open_foreign` does; raises CheckpointError."""
    try:
        with open(open_foreign(path), "rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error


def _follow(path: Path) -> Path:
    """Where a link leads, if it may lead there."""
    folder, target = path.parent.resolve(), path.resolve(strict=True)
    snapshots = next((parent for parent in folder.parents if parent.name == "snapshots"), None)
    # a cache's own folder of blobs is no link itself
    blobs = snapshots.parent / "blobs" if snapshots else folder
    if not target.is_relative_to(folder) and not target.is_relative_to(blobs):
        raise CheckpointError(
            f"{path}: a link that leaves its folder; put the file itself there (only links of the "
            "hub's cache to its blobs are followed)"
        )
    return target
