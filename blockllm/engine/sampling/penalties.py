"""What a request does to its logits before choosing: penalties, biases, forbidden tokens."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from blockllm.core import Sampling
from blockllm.engine.sequence import Sequence


def adjusts(sampling: Sampling, num_generated: int) -> bool:
    """Must this request's logits be changed at all?"""
    return bool(
        sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1.0
        or sampling.logit_bias
        or num_generated < sampling.min_tokens
    )


def adjust(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> None:
    """Change rows in place, in vLLM's order: repetition (prompt and output), frequency and
    presence (output only), bias, then no end before `min_tokens`. logits: [rows, vocab]"""
    for row, sequence in zip(logits, sequences, strict=True):
        sampling = sequence.request.sampling
        if sampling.repetition_penalty != 1.0:
            _repetition(row, sequence.known_tokens(), sampling.repetition_penalty)
        if sampling.frequency_penalty or sampling.presence_penalty:
            _frequency(row, sequence, sampling)
        for token, bias in sampling.logit_bias.items():
            row[token] += bias
        if sequence.num_generated < sampling.min_tokens:
            ends = sequence.state.eos_ids | frozenset(sampling.stop_ids)
            row[list(ends)] = float("-inf")


def _repetition(row: torch.Tensor, tokens: np.ndarray, penalty: float) -> None:
    seen = torch.from_numpy(np.unique(tokens)).to(row.device)
    values = row[seen]
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _frequency(row: torch.Tensor, sequence: Sequence, sampling: Sampling) -> None:
    output = sequence.tokens[sequence.num_prompt : sequence.num_total]
    if not len(output):
        return
    tokens, counts = np.unique(output, return_counts=True)
    weights = torch.from_numpy(counts).to(row.device, row.dtype)
    row[torch.from_numpy(tokens).to(row.device)] -= (
        sampling.frequency_penalty * weights + sampling.presence_penalty
    )
