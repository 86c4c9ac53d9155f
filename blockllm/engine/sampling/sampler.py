"""Choose the next token of every row: greedy, plain, or filtered, each for all its rows at once.

A row's choice depends on its own logits, options, seed and position only. Which of the three
ways it takes follows from its own options, so its neighbours cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from blockllm.core import Sampling
from blockllm.engine.device.transfer import upload
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.kernels.cpu import native
from blockllm.engine.sampling.choose import TopPick
from blockllm.engine.sampling.draw import Draw, Sampled, WantedLogprobs
from blockllm.engine.sampling.penalties import adjust, adjusts
from blockllm.engine.sampling.random import Drawing, choose_random
from blockllm.engine.sampling.uniform import uniforms
from blockllm.engine.sequence.sequence import Sequence


def sample(
    logits: torch.Tensor, sequences: SequenceOf[Sequence], kernels: Kernels = ALL_CORES
) -> list[Sampled]:
    """Draw and wait. logits: [rows, vocab], may be overwritten."""
    return draw(logits, sequences, kernels).collect()


@torch.inference_mode()
def draw(
    logits: torch.Tensor, sequences: SequenceOf[Sequence], kernels: Kernels = ALL_CORES
) -> Draw:
    """Choose the next token of each sequence without waiting for the device. All earlier tokens
    must be known. logits: [rows, vocab], may be overwritten."""
    logits = logits.float()
    tokens, finite = _best(logits, kernels)
    if all(sequence.is_plainly_greedy for sequence in sequences):
        return Draw(tokens, finite)
    options = [s.request.sampling for s in sequences]
    asked = _ask(logits, options)
    changed = [i for i, s in enumerate(sequences) if adjusts(s)]
    if changed:
        where = _indices(changed, logits.device)
        rows = logits[where]
        adjust(rows, [sequences[i] for i in changed])
        logits[where] = rows
        tokens[where], _ = _best(rows, kernels)
    return Draw(tokens, finite, asked, _draw_random(logits, options, sequences, tokens, kernels))


def _indices(rows: list[int], device: torch.device) -> torch.Tensor:
    (where,) = upload([np.array(rows, np.int64)], device)
    return where


def _best(logits: torch.Tensor, kernels: Kernels) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of each row's largest logits, and whether that one is finite; a NaN counts as
    largest. [rows] each"""
    if kernels.native(logits):
        return native.best(logits, kernels.threads)
    tokens = logits.argmax(-1)
    return tokens, torch.isfinite(logits.gather(-1, tokens[:, None])[:, 0])


def _ask(logits: torch.Tensor, options: list[Sampling]) -> WantedLogprobs | None:
    wanted = [(i, o.logprobs) for i, o in enumerate(options) if o.logprobs is not None]
    if not wanted:
        return None
    rows, counts = (list(column) for column in zip(*wanted, strict=True))
    where = _indices(rows, logits.device)
    return WantedLogprobs(rows, counts, where, torch.log_softmax(logits[where], -1))


def _draw_random(
    logits: torch.Tensor,
    options: list[Sampling],
    sequences: SequenceOf[Sequence],
    tokens: torch.Tensor,
    kernels: Kernels,
) -> tuple[TopPick, np.ndarray] | None:
    rows = np.array([i for i, o in enumerate(options) if o.temperature > 0], np.int64)
    if not len(rows):
        return None
    seeds = np.array([sequences[i].seed & (2**64 - 1) for i in rows], np.uint64)
    u = uniforms(seeds, np.array([sequences[i].num_total for i in rows], np.uint64))
    drawing = Drawing.of([options[i] for i in rows], rows, u, logits.shape[-1])
    return choose_random(logits, drawing, tokens, kernels)
