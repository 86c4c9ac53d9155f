"""How many rows a turn may take so that decoding sequences do not wait too long.

Chunked prompts share turns with decoding sequences (Sarathi-Serve, arXiv 2403.02310). Here the
chunk is what fits into a turn of the wanted length, by the spans' measured costs or, where these
are not known, by how long the engine's own turns have taken.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blockllm.engine.costs.span import HopSize, SpanCost

# a prompt always gets on, however crowded the turn
LEAST_ROWS = 16
_RECENT = 8  # turns that are remembered


class SequencePath(NamedTuple):
    """A decoding sequence, or the prompt to be cut: its spans and the tokens computed so far."""

    spans: Sequence[int]
    context: int


class ObservedBudget:
    """The wanted length of a turn, and how long recent ones took."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._recent: deque[float] = deque(maxlen=_RECENT)  # seconds per row

    def observe(self, rows: int, seconds: float) -> None:
        """A turn with parts of prompts took so long. Turns of a few rows tell nothing of larger
        ones."""
        if rows > LEAST_ROWS:
            self._recent.append(seconds / rows)

    def rows(self, decoding: Sequence[SequencePath], prompt: SequencePath, max_rows: int) -> int:
        """As `ProfiledBudget.rows`. What a turn costs beside its rows is spread over them, so the
        number settles where turns take as long as wanted."""
        if not decoding or not self._recent:
            return max_rows
        fitting = self._seconds / statistics.median_low(self._recent)
        return int(min(max_rows, max(fitting, len(decoding) + LEAST_ROWS)))


class ProfiledBudget(NamedTuple):
    """The wanted length of a turn, and what each span costs."""

    seconds: float
    costs: Mapping[int, SpanCost]

    def rows(self, decoding: Sequence[SequencePath], prompt: SequencePath, max_rows: int) -> int:
        """Rows of a turn: one for each decoding sequence, the rest for the prompt. All that are
        allowed if no sequence decodes."""
        if not decoding:
            return max_rows
        sizes = _decoding_sizes(decoding)
        apart = set(sizes) - set(prompt.spans)
        fixed = sum(self.costs[span].seconds(sizes[span]) for span in apart)
        low = min(LEAST_ROWS, max_rows)
        high = max(low, max_rows - len(decoding))
        while low < high:  # the largest chunk that fits
            middle = (low + high + 1) // 2
            if fixed + self._with_chunk(sizes, prompt, middle) <= self.seconds:
                low = middle
            else:
                high = middle - 1
        return min(max_rows, len(decoding) + low)

    def _with_chunk(self, sizes: Mapping[int, HopSize], prompt: SequencePath, rows: int) -> float:
        pairs = rows * (2 * prompt.context + rows + 1) // 2
        total = 0.0
        for span in prompt.spans:
            size = sizes.get(span, HopSize(0, 0, 0))
            grown = size._replace(rows=size.rows + rows, pairs=pairs, chunks=1)
            total += self.costs[span].seconds(grown)
        return total


TurnBudget = ObservedBudget | ProfiledBudget


def _decoding_sizes(decoding: Sequence[SequencePath]) -> dict[int, HopSize]:
    counts: dict[int, list[int]] = {}
    for load in decoding:
        for span in load.spans:
            rows_and_tokens = counts.setdefault(span, [0, 0])
            rows_and_tokens[0] += 1
            rows_and_tokens[1] += load.context + 1
    return {span: HopSize.decoding(rows, tokens) for span, (rows, tokens) in counts.items()}
