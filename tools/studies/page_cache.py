"""Files in the system's page cache: how much of them lies there, and putting it out."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def drop(files: Iterable[Path]) -> tuple[int, int]:
    """Put files out of the page cache; their bytes there before and after. Pages that a process
    has mapped stay."""
    found = list(files)
    before = cached(found)
    for file in found:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return before, cached(found)


def cached(files: Iterable[Path]) -> int:
    """Bytes of files that lie in the page cache, in whole pages."""
    return mmap.PAGESIZE * sum(_cached_pages(file) for file in files)


def _cached_pages(file: Path) -> int:
    size = file.stat().st_size
    if not size:
        return 0
    pages = -(-size // mmap.PAGESIZE)
    seen = (ctypes.c_ubyte * pages)()
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, mmap.MAP_PRIVATE) as mapped:
        first = ctypes.c_ubyte.from_buffer(mapped)
        try:
            failed = _LIBC.mincore(
                ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), seen
            )
        finally:
            del first
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore {file}")
    return sum(page & 1 for page in bytes(seen))
