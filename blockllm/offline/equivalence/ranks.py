"""How well a cheap metric predicts the swap test: Spearman's rank correlation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from blockllm.offline.equivalence.evidence import Edge, Prediction

# each grows with the loss that it stands for
_METRICS: dict[str, Callable[[Edge], float | None]] = {
    "1 - weight cosine": lambda edge: 1 - edge.weights.cosine if edge.weights else None,
    "weight distance": lambda edge: edge.weights.distance if edge.weights else None,
    "1 - lens cosine": lambda edge: 1 - edge.lens.cosine if edge.lens else None,
    "lens KL": lambda edge: edge.lens.kl if edge.lens else None,
    "lens disagreement": lambda edge: 1 - edge.lens.agreement if edge.lens else None,
}


def predictions(edges: Sequence[Edge]) -> tuple[Prediction, ...]:
    """Rank correlation of each metric with the swap test's KL, over all tried pairs of decoder
    layers and over those at the same position; nothing for fewer than three."""
    tried = [edge for edge in edges if edge.quality and edge.lens]
    same = [e for e in tried if e.swap.old_site.position == e.swap.new_site.position]
    found = []
    for pairs, chosen in {"all": tried, "same position": same}.items():
        if pairs != "all" and len(chosen) == len(tried):
            continue
        for metric, value in _METRICS.items():
            points = [(x, _swap_kl(e)) for e in chosen if (x := value(e)) is not None]
            if len(points) >= 3:
                found.append(Prediction(metric, pairs, spearman(points), len(points)))
    return tuple(found)


def _swap_kl(edge: Edge) -> float:
    """Mean over the models that the swap changes."""
    return float(np.mean([quality.kl for quality in edge.quality.values()]))


def spearman(points: Sequence[tuple[float, float]]) -> float:
    """Pearson's correlation of the ranks, equal values sharing their mean rank; 0 where either
    side has one value only: nothing is ranked."""
    ranks = np.array([_ranks(side) for side in zip(*points, strict=True)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((ranks**2).sum(axis=1))
    return float(ranks[0] @ ranks[1] / norms.prod()) if norms.all() else 0.0


def _ranks(values: Sequence[float]) -> NDArray[np.float64]:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return ranks
