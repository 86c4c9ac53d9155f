"""Which tokens a text holds, counted as they come: penalties must not rescan it every step."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class TokenCounts:
    """Distinct tokens of one growing text, in order of appearance, and their counts."""

    def __init__(self) -> None:
        self._length = 0  # of the text counted so far
        self._counts: dict[int, int] = {}

    def count(self, text: Ints) -> tuple[Ints, Ints]:
        """Distinct tokens and counts of `text`, which begins with the text of the last call."""
        counts = self._counts
        for token in text[self._length :].tolist():
            counts[token] = counts.get(token, 0) + 1
        self._length = len(text)
        tokens = np.fromiter(counts, np.int64, len(counts))
        return tokens, np.fromiter(counts.values(), np.int64, len(counts))
