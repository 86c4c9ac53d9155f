"""What a request does to its logits before choosing: penalties, biases, forbidden tokens."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from blockllm.core import Sampling
from blockllm.engine.device.transfer import upload
from blockllm.engine.sequence.sequence import Sequence


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
            biased = np.array(list(sampling.logit_bias), np.int64)
            biases = np.array(list(sampling.logit_bias.values()), np.float64)
            tokens, more = upload([biased, biases], row.device)
            row[tokens] += more.to(row.dtype)
        if sequence.num_generated < sampling.min_tokens and sequence.end_ids:
            (ends,) = upload([np.array(list(sequence.end_ids), np.int64)], row.device)
            row.index_fill_(0, ends, float("-inf"))


def _repetition(row: torch.Tensor, sequence: Sequence, penalty: float) -> None:
    tokens, _ = sequence.token_counts.count(sequence.known_tokens())
    (seen,) = upload([tokens], row.device)
    values = row[seen]
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _frequency(row: torch.Tensor, sequence: Sequence, sampling: Sampling) -> None:
    tokens, counts = sequence.output_counts.count(sequence.known_tokens()[sequence.num_prompt :])
    if len(tokens):
        seen, weights = upload([tokens, counts], row.device)
        row[seen] -= sampling.frequency_penalty * weights.to(row.dtype) + sampling.presence_penalty
