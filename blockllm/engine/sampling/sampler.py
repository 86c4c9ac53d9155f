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
    options = [s.request.sampling for s in sequences]
    logits = logits.float()
    finite = torch.isfinite(logits.amax(-1)).tolist()
    wanted = [i for i, o in enumerate(options) if o.logprobs is not None]
    raw = torch.log_softmax(logits[wanted], -1) if wanted else None
    changed = [i for i, s in enumerate(sequences) if adjusts(options[i], s.num_generated)]
    if changed:
        rows = logits[changed]
        adjust(rows, [sequences[i] for i in changed])
        logits[changed] = rows
    tokens = _choose(logits, options, sequences)
    logprobs = _logprobs(raw, wanted, options, tokens)
    return [
        Sampled(token if ok else None, logprobs.get(i))
        for i, (token, ok) in enumerate(zip(tokens, finite, strict=True))
    ]


def _choose(
    logits: torch.Tensor, options: list[Sampling], sequences: SequenceOf[Sequence]
) -> list[int]:
    tokens = logits.argmax(-1)
    random = [i for i, o in enumerate(options) if o.temperature > 0]
    if random:
        seeds = np.array([sequences[i].seed & (2**64 - 1) for i in random], np.uint64)
        draws = uniforms(seeds, np.array([sequences[i].num_total for i in random], np.uint64))
        _choose_random(logits, options, np.array(random), draws, tokens)
    chosen: list[int] = tokens.tolist()
    return chosen


def _choose_random(
    logits: torch.Tensor,
    options: list[Sampling],
    random: np.ndarray,
    draws: np.ndarray,
    tokens: torch.Tensor,
) -> None:
    filtered = np.array([options[i].top_p < 1 or options[i].top_k > 0 for i in random])
    for mask, pick in ((~filtered, _pick_plain), (filtered, _pick_filtered)):
        if mask.any():
            rows = random[mask]
            where = torch.from_numpy(rows).to(logits.device)
            u = torch.from_numpy(draws[mask]).to(logits.device, torch.float64)
            tokens[where] = pick(_probabilities(logits[where], [options[i] for i in rows]), u)


def _column(values: list[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None]


def _probabilities(logits: torch.Tensor, options: list[Sampling]) -> _Weighted:
    """Softmax at each row's temperature; tokens below min_p of the best get zero."""
    temperature = _column([max(o.temperature, 1e-5) for o in options], logits)
    weights = torch.softmax(logits / temperature, -1)
    if any(o.min_p > 0 for o in options):
        floor = _column([o.min_p for o in options], logits) * weights.amax(-1, keepdim=True)
        weights = weights.masked_fill(weights < floor, 0.0)
    return _Weighted(weights, options)


class _Weighted(NamedTuple):
    weights: torch.Tensor  # [rows, vocab], not renormalised after min_p
    options: list[Sampling]


def _pick_plain(rows: _Weighted, u: torch.Tensor) -> torch.Tensor:
    return _inverse_cdf(rows.weights, u)


def _pick_filtered(rows: _Weighted, u: torch.Tensor) -> torch.Tensor:
    """top_k, then top_p: the smallest set of most likely tokens that holds p of the mass."""
    weights, order = rows.weights.sort(dim=-1, descending=True, stable=True)
    vocab = weights.shape[-1]
    k = torch.tensor([o.top_k or vocab for o in rows.options], device=weights.device)[:, None]
    weights = weights.masked_fill(torch.arange(vocab, device=weights.device) >= k, 0.0)
    total = weights.sum(-1, keepdim=True)
    before = weights.cumsum(-1) - weights
    limit = _column([o.top_p for o in rows.options], weights) * total
    weights = weights.masked_fill((before >= limit) & (before > 0), 0.0)
    return order.gather(-1, _inverse_cdf(weights, u)[:, None])[:, 0]


def _inverse_cdf(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Index at which the running sum of weights passes u of the total. [rows]"""
    cumulative = weights.double().cumsum(-1)
    target = u[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return index.clamp_(max=weights.shape[-1] - 1)


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
