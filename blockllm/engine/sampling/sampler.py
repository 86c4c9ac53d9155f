"""Choose the next token of every row: greedy, plain, or filtered, each for all its rows at once.

A row's choice depends on its own logits, options, seed and position only. Which of the three
ways it takes follows from its own options, so its neighbours cannot change it.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np
import torch

from blockllm.core import Sampling, TokenLogprobs
from blockllm.engine.sampling.choose import Filters, pick, pick_top
from blockllm.engine.sampling.penalties import adjust, adjusts
from blockllm.engine.sampling.uniform import uniforms
from blockllm.engine.sequence import Sequence


class Sampled(NamedTuple):
    """One row's choice; `token` is None if the logits are not finite."""

    token: int | None
    logprobs: TokenLogprobs | None


@torch.inference_mode()
def sample(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[Sampled]:
    """Next token of each sequence. logits: [rows, vocab], may be overwritten."""
    logits = logits.float()
    tokens, finite = _best(logits)
    if all(sequence.is_plainly_greedy for sequence in sequences):
        pairs = zip(tokens.tolist(), finite.tolist(), strict=True)
        return [Sampled(token if ok else None, None) for token, ok in pairs]
    options = [s.request.sampling for s in sequences]
    wanted = [i for i, o in enumerate(options) if o.logprobs is not None]
    raw = torch.log_softmax(logits[wanted], -1) if wanted else None
    changed = [i for i, s in enumerate(sequences) if adjusts(s)]
    if changed:
        rows = logits[changed]
        adjust(rows, [sequences[i] for i in changed])
        logits[changed] = rows
        tokens[changed], _ = _best(rows)
    _choose_random(logits, options, sequences, tokens)
    chosen: list[int] = tokens.tolist()
    logprobs = _logprobs(raw, wanted, options, chosen)
    return [
        Sampled(token if ok else None, logprobs.get(i))
        for i, (token, ok) in enumerate(zip(chosen, finite.tolist(), strict=True))
    ]


def _best(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first of each row's largest logits, and whether that one is finite; a NaN counts as
    largest. [rows] each"""
    if logits.device.type == "cpu":  # numpy's is vectorised: measured 8 times as fast as torch's
        tokens = torch.from_numpy(logits.numpy().argmax(-1))
    else:
        tokens = logits.argmax(-1)
    return tokens, torch.isfinite(logits.gather(-1, tokens[:, None])[:, 0])


def _choose_random(
    logits: torch.Tensor,
    options: list[Sampling],
    sequences: SequenceOf[Sequence],
    tokens: torch.Tensor,
) -> None:
    """Overwrite the tokens of rows that draw theirs."""
    random = np.array([i for i, o in enumerate(options) if o.temperature > 0], np.int64)
    if not len(random):
        return
    seeds = np.array([sequences[i].seed & (2**64 - 1) for i in random], np.uint64)
    draws = uniforms(seeds, np.array([sequences[i].num_total for i in random], np.uint64))
    filtered = np.array([options[i].top_p < 1 or options[i].top_k > 0 for i in random])
    for mask in (~filtered, filtered):
        if not mask.any():
            continue
        rows = random[mask]
        where = torch.from_numpy(rows).to(logits.device)
        u = torch.from_numpy(draws[mask]).to(logits.device)
        own = [options[i] for i in rows]
        weights = _probabilities(logits[where], own)
        if mask is filtered:
            tokens[where] = pick_top(weights, _filters(own, weights), u)
        else:
            tokens[where] = pick(weights, u)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None]


def _probabilities(logits: torch.Tensor, options: list[Sampling]) -> torch.Tensor:
    """Softmax at each row's temperature; tokens below min_p of the best get zero, the others are
    not renormalised. [rows, vocab]"""
    temperature = _column([max(o.temperature, 1e-5) for o in options], logits)
    weights = torch.softmax(logits / temperature, -1)
    if any(o.min_p > 0 for o in options):
        floor = _column([o.min_p for o in options], logits) * weights.amax(-1, keepdim=True)
        weights = weights.masked_fill(weights < floor, 0.0)
    return weights


def _filters(options: list[Sampling], weights: torch.Tensor) -> Filters:
    vocab, device = weights.shape[-1], weights.device
    return Filters(
        torch.tensor([min(o.top_k or vocab, vocab) for o in options], device=device),
        torch.tensor([o.top_p for o in options], dtype=torch.float64, device=device),
    )


def _logprobs(
    raw: torch.Tensor | None, wanted: list[int], options: list[Sampling], tokens: list[int]
) -> dict[int, TokenLogprobs]:
    """Log-probabilities of the model itself, before penalties and temperature (as vLLM)."""
    if raw is None:
        return {}
    k = max(options[i].logprobs or 0 for i in wanted)
    values, ids = raw.topk(min(k, raw.shape[-1]), dim=-1) if k else (raw[:, :0], raw[:, :0])
    found = {}
    for row, i in enumerate(wanted):
        count = options[i].logprobs or 0
        pairs = zip(ids[row, :count].tolist(), values[row, :count].tolist(), strict=True)
        found[i] = TokenLogprobs(float(raw[row, tokens[i]]), tuple(pairs))
    return found
