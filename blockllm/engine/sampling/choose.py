"""The index to take from a row of probabilities: anywhere, or among its most likely tokens.

`pick_sorted` is the plain twin of `pick_top`: it sorts the whole vocabulary. Nothing here waits for
the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# Most likely tokens looked at first: enough for the top_p of most texts, and for equals of the last
# one that a smaller top_k keeps.
_CANDIDATES = 256


class Filters(NamedTuple):
    """Per row: keep the `top_k` most likely, of these the fewest that hold `top_p` of the mass."""

    top_k: torch.Tensor  # [rows] int64, at least 1
    top_p: torch.Tensor  # [rows] float64

    def take(self, rows: torch.Tensor) -> Filters:
        """The filters of some rows."""
        return Filters(self.top_k[rows], self.top_p[rows])


class TopPick(NamedTuple):
    """Indices chosen among the most likely tokens, and what it takes to choose again."""

    tokens: torch.Tensor  # [rows]
    is_open: torch.Tensor | None  # [rows] tokens not looked at may be kept; None: in no row
    weights: torch.Tensor  # [rows, vocab]
    filters: Filters
    u: torch.Tensor  # [rows]

    def again(self, rows: torch.Tensor) -> torch.Tensor:
        """The choice of some rows among all tokens. rows: [k] indices → [k]"""
        return pick_sorted(self.weights[rows], self.filters.take(rows), self.u[rows])


def pick(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Index at which the running sum of weights passes u of the total. [rows]"""
    return _pass(weights.double().cumsum(-1), u)


def pick_sorted(weights: torch.Tensor, filters: Filters, u: torch.Tensor) -> torch.Tensor:
    """As `pick` over the tokens that the filters keep, most likely first, equals by index."""
    mass = _mass(weights)
    weights, order = weights.sort(dim=-1, descending=True, stable=True)
    cumulative, _ = _filter(weights, filters, mass)
    return order.gather(-1, _pass(cumulative, u)[:, None])[:, 0]


def pick_top(weights: torch.Tensor, filters: Filters, most: int, u: torch.Tensor) -> TopPick:
    """As `pick_sorted`, without sorting tokens that cannot be kept; wrong at most for rows that
    stay open. `most`: the largest top_k that leaves something out; 0 if none does."""
    vocab = weights.shape[-1]
    bound = max(_CANDIDATES, most)
    if bound + 1 >= vocab:
        return TopPick(pick_sorted(weights, filters, u), None, weights, filters, u)
    # by index first: a stable sort then leaves equals in their order
    order = weights.topk(bound + 1, dim=-1).indices.sort(dim=-1).values
    top, inner = weights.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    cumulative, kept = _filter(top, filters, _mass(weights))
    chosen = order.gather(-1, inner.gather(-1, _pass(cumulative, u)[:, None]))[:, 0]
    # equals of the last candidate may lie outside, and so may tokens that top_p still keeps
    last = top.gather(-1, (kept - 1)[:, None])[:, 0]
    closed = (kept <= bound) & ((last > top[:, -1]) | (last == 0))
    return TopPick(chosen, ~closed, weights, filters, u)


def _mass(weights: torch.Tensor) -> torch.Tensor:
    """What top_p is a share of where top_k keeps everything. [rows]"""
    return weights.double().sum(-1)


def _filter(
    top: torch.Tensor, filters: Filters, mass: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Running sums [rows, tokens] of sorted weights, constant from the first token left out; and
    how many are kept [rows]."""
    width = top.shape[-1]
    wide = top.double()
    sums = wide.cumsum(-1)
    k = filters.top_k[:, None]
    total = torch.where(k <= width, sums.gather(-1, k.clamp(max=width) - 1), mass[:, None])
    before = sums - wide
    limit = filters.top_p[:, None] * total
    places = torch.arange(width, device=top.device)
    keep = (places < k) & ((before < limit) | (places == 0))
    kept = keep.sum(-1)
    last = sums.gather(-1, (kept - 1)[:, None])
    return torch.minimum(sums, last), kept


def _pass(cumulative: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    target = u[:, None] * cumulative[:, -1:]
    index = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return index.clamp_(max=cumulative.shape[-1] - 1)
