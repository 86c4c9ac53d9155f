"""How many rows a turn may take so that those who decode do not wait too long. Pure (law 7).

Chunked prompts share turns with decoding sequences (Sarathi-Serve, arXiv 2403.02310). Here the
chunk is what the spans' measured costs say fits into a turn of the wanted length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blockllm.engine.cost import HopSize, SpanCost

# a prompt always gets on, however crowded the turn
LEAST_ROWS = 16


class Load(NamedTuple):
    """A decoding sequence, or the prompt to be cut: its spans and the tokens computed so far."""

    spans: Sequence[int]
    context: int


class Pace(NamedTuple):
    """The wanted length of a turn, and what each span costs."""

    seconds: float
    costs: Mapping[int, SpanCost]

    def rows(self, decoding: Sequence[Load], prompt: Load, max_rows: int) -> int:
        """Rows of a turn: one for each decoding sequence, the rest for the prompt. All that are
        allowed if nobody decodes."""
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

    def _with_chunk(self, sizes: Mapping[int, HopSize], prompt: Load, rows: int) -> float:
        pairs = rows * (2 * prompt.context + rows + 1) // 2
        total = 0.0
        for span in prompt.spans:
            size = sizes.get(span, HopSize(0, 0, 0))
            grown = size._replace(rows=size.rows + rows, pairs=pairs, chunks=1)
            total += self.costs[span].seconds(grown)
        return total


def _decoding_sizes(decoding: Sequence[Load]) -> dict[int, HopSize]:
    counts: dict[int, list[int]] = {}
    for load in decoding:
        for span in load.spans:
            rows_and_tokens = counts.setdefault(span, [0, 0])
            rows_and_tokens[0] += 1
            rows_and_tokens[1] += load.context + 1
    return {span: HopSize.decoding(rows, tokens) for span, (rows, tokens) in counts.items()}
