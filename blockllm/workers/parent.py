"""A child process that ends with its parent, in whatever state it is."""

from __future__ import annotations

import ctypes
import signal
import sys

_SIGNAL_AT_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG


def wake_at_end_of_parent() -> None:
    """When the parent ends, continue if stopped. The end of its pipe says that it is gone, but a
    process that was stopped (SIGSTOP) reads no pipe and would stay for ever. Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_AT_DEATH_OF_PARENT, signal.SIGCONT, 0, 0, 0)
