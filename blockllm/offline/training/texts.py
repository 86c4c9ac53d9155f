"""Text as windows to learn from and windows to measure on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from blockllm.errors import ZooError
from blockllm.offline.text import windows
from blockllm.zoo import Zoo

_KEPT = 5  # without a text of its own, one window in so many is kept for measuring


def learn_and_measure(
    zoo: Zoo, models: Sequence[str], text: bytes, measured: bytes | None, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Windows of `text` to learn from, and of `measured` to measure on: without it the last fifth
    of the text, which is then not learned from. [windows, tokens] each, whole windows only.

    Raises ZooError unless the models share one tokenizer and there is enough text.
    """
    learned = _stack(windows(zoo, models, text, window), window)
    if measured is not None:
        return learned, _stack(windows(zoo, models, measured, window), window)
    kept = max(1, len(learned) // _KEPT)
    if len(learned) <= kept:
        raise ZooError(f"the text has {len(learned)} whole window(s): give more text")
    return learned[:-kept], learned[-kept:]


def batches(windows: torch.Tensor, rows: int = 4) -> Iterator[torch.Tensor]:
    """The windows, `rows` at a time. [up to rows, tokens] each"""
    for first in range(0, len(windows), rows):
        yield windows[first : first + rows]


def _stack(cut: Sequence[Sequence[int]], window: int) -> torch.Tensor:
    full = [one for one in cut if len(one) == window]
    if not full:
        raise ZooError(f"the text has no {window} tokens: give more text")
    return torch.tensor(full)
