"""What a request does to its logits before choosing: penalties, biases, forbidden tokens."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import torch

from blockllm.core import Sampling
from blockllm.engine.sequence import Sequence


def adjusts(sequence: Sequence) -> bool:
    """Must this request's logits be changed at all?"""
    sampling = sequence.request.sampling
    return bool(
        sampling.presence_penalty
        or sampling.frequency_penalty
        or sampling.repetition_penalty != 1.0
        or sampling.logit_bias
        or sequence.num_generated < sampling.min_tokens
    )


def adjust(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> None:
    """Change rows in place, in vLLM's order: repetition (prompt and output), frequency and
    presence (output only), bias, then no end before `min_tokens`. logits: [rows, vocab]"""
    for row, sequence in zip(logits, sequences, strict=True):
        sampling = sequence.request.sampling
        if sampling.repetition_penalty != 1.0:
            _repetition(row, sequence, sampling.repetition_penalty)
        if sampling.frequency_penalty or sampling.presence_penalty:
            _frequency(row, sequence, sampling)
        if sampling.logit_bias:
            tokens = torch.tensor(list(sampling.logit_bias), device=row.device)
            biases = list(sampling.logit_bias.values())
            row[tokens] += torch.tensor(biases, device=row.device, dtype=row.dtype)
        if sequence.num_generated < sampling.min_tokens:
            row[list(sequence.end_ids)] = float("-inf")


def _repetition(row: torch.Tensor, sequence: Sequence, penalty: float) -> None:
    tokens, _ = sequence.tally.count(sequence.known_tokens())
    seen = torch.from_numpy(tokens).to(row.device)
    values = row[seen]
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _frequency(row: torch.Tensor, sequence: Sequence, sampling: Sampling) -> None:
    tokens, counts = sequence.output_tally.count(sequence.known_tokens()[sequence.num_prompt :])
    if len(tokens):
        weights = torch.from_numpy(counts).to(row.device, row.dtype)
        row[torch.from_numpy(tokens).to(row.device)] -= (
            sampling.frequency_penalty * weights + sampling.presence_penalty
        )
