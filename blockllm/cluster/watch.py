"""Notices an agent that hangs: requests wait for it, and it neither speaks nor computes.

A turn may take minutes and speaks only when it is over, so silence alone says nothing: time on the
processor is progress too. A stopped or deadlocked process takes none.
"""

from __future__ import annotations

import os
from pathlib import Path

LOOKS = 4  # in a row without progress make a hang; looks, since our own process may be paused too
_LEAST_SHARE = 0.01  # of a core: receiving our questions takes less, computing takes more


def processor_seconds(pid: int) -> float | None:
    """Time that a process and its ended children have had on processors; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


class Watch:
    """Judges one agent by looks at it, `seconds` apart."""

    def __init__(self, seconds: float) -> None:
        self._least = seconds * _LEAST_SHARE
        self._heard = 0
        self._computed: float | None = None
        self._silent = 0  # looks without progress since a request waited

    def look(self, heard: int, computed: float | None, waiting: bool) -> bool:
        """Whether the agent hangs: how many messages it has sent, its processor seconds (None: not
        known, so never a hang), and whether requests wait for it."""
        moved = heard != self._heard or computed is None or self._computed is None
        if not moved and computed is not None and self._computed is not None:
            moved = abs(computed - self._computed) > self._least
        self._heard, self._computed = heard, computed
        if moved:
            self._silent = 0
        elif waiting or self._silent:  # a client that gives up changes nothing about a hang
            self._silent += 1
        return self._silent >= LOOKS
