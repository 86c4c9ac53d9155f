"""Activations are made and let go of in every hop. The C library gives large ones back to the
system at once, which then has to clear the same memory again at the next hop's first touch: about
30,000 page faults for a prompt of 512 rows."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of glibc's malloc.h
_KEPT = 1 << 30  # bytes of free memory at the heap's end that stay with the process
_LARGEST = 1 << 25  # bytes; the most that every glibc takes. Larger ones are mapped on their own


def keep_freed_memory() -> None:
    """Ask glibc to keep what is freed for what comes next. Elsewhere nothing happens."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST)
