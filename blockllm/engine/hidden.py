"""Hidden states of rows that wait in front of a stop for a later turn."""

from __future__ import annotations

import torch


class HiddenStore:
    """By sequence and stop, the rows that wait there, in their order."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[int, int], torch.Tensor] = {}  # [rows, hidden_size]

    def put(self, sequence: int, stop: int, hidden: torch.Tensor) -> None:
        """Rows that follow those that wait there. hidden: [rows, hidden_size]"""
        before = self._waiting.get((sequence, stop))
        joined = hidden if before is None else torch.cat([before, hidden])
        self._waiting[sequence, stop] = joined

    def take(self, sequence: int, stop: int, rows: int) -> torch.Tensor:
        """The first rows that wait there; they wait no more. [rows, hidden_size]"""
        hidden = self._waiting.pop((sequence, stop))
        assert len(hidden) >= rows
        if len(hidden) > rows:
            self._waiting[sequence, stop] = hidden[rows:]
        return hidden[:rows]

    def num_rows(self, sequence: int, stop: int) -> int:
        """How many rows wait there."""
        hidden = self._waiting.get((sequence, stop))
        return 0 if hidden is None else len(hidden)

    def drop(self, sequence: int, stop: int) -> None:
        """Forget what waits there."""
        del self._waiting[sequence, stop]

    def __len__(self) -> int:
        return len(self._waiting)
