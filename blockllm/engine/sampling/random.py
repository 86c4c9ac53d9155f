"""Tokens of the rows that draw theirs: a kernel on the CPU, on other devices and without a compiler
torch, where rows with filters and rows without go their own ways."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.core import Sampling
from blockllm.engine.device.transfer import upload
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kernels.cpu import native
from blockllm.engine.sampling.choose import Filters, TopPick, pick, pick_top


class Drawing(NamedTuple):
    """What rows that draw their tokens ask for. Arrays are `[rows]`."""

    rows: NDArray[np.int64]  # of the logits
    u: NDArray[np.float64]  # random, in [0, 1)
    temperatures: NDArray[np.float32]
    min_p: NDArray[np.float32]
    top_k: NDArray[np.int64]  # the vocabulary's size keeps all
    top_p: NDArray[np.float64]

    @staticmethod
    def of(
        options: SequenceOf[Sampling], rows: NDArray[np.int64], u: NDArray[np.float64], vocab: int
    ) -> Drawing:
        """By the options of each row."""
        return Drawing(
            rows,
            u,
            np.array([max(o.temperature, 1e-5) for o in options], np.float32),
            np.array([o.min_p for o in options], np.float32),
            np.array([min(o.top_k or vocab, vocab) for o in options], np.int64),
            np.array([o.top_p for o in options], np.float64),
        )

    def take(self, mask: NDArray[np.bool_]) -> Drawing:
        """Some of the rows."""
        return Drawing(*(column[mask] for column in self))  # type: ignore[arg-type]


def choose_random(
    logits: torch.Tensor, drawing: Drawing, tokens: torch.Tensor, kernels: Kernels
) -> tuple[TopPick, np.ndarray] | None:
    """Overwrite the tokens of rows that draw theirs. The choice among filtered ones that may have
    to be made again, and whose it is. logits: [rows, vocab]; tokens: [rows]"""
    if kernels.native(logits):
        columns = [torch.from_numpy(column) for column in drawing]
        tokens[columns[0]] = native.draw(logits, kernels.threads, *columns)
        return None
    filtered = (drawing.top_p < 1) | (drawing.top_k < logits.shape[-1])
    picked = None
    for mask in (~filtered, filtered):
        if not mask.any():
            continue
        own = drawing.take(mask)
        where, u, temperatures, min_p, top_k, top_p = upload(list(own), logits.device)
        weights = _probabilities(logits[where], temperatures, min_p if own.min_p.any() else None)
        if mask is filtered:
            most = int(own.top_k.max(where=own.top_k < logits.shape[-1], initial=0))
            found = pick_top(weights, Filters(top_k, top_p), most, u)
            tokens[where], picked = found.tokens, (found, own.rows)
        else:
            tokens[where] = pick(weights, u)
    return picked


def _probabilities(
    logits: torch.Tensor, temperatures: torch.Tensor, min_p: torch.Tensor | None
) -> torch.Tensor:
    """Softmax at each row's temperature; tokens below min_p of the best get zero, the others are
    not renormalised. [rows, vocab]"""
    weights = torch.softmax(logits / temperatures[:, None], -1)
    if min_p is not None:
        least = min_p[:, None] * weights.amax(-1, keepdim=True)
        weights = weights.masked_fill(weights < least, 0.0)
    return weights
