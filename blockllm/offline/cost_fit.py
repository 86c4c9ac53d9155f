"""Fit a span's cost to measured hops: non-negative least squares of relative errors."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blockllm.engine.costs.profiles import FitError, Sample
from blockllm.engine.costs.span import SpanCost, features

Floats = NDArray[np.float64]

# rows from which on arithmetic may cost more than reading the weights
_KNEES = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def nnls(matrix: Floats, target: Floats) -> Floats:
    """x >= 0 with the least ‖matrix · x − target‖. matrix: [n, terms] → [terms]

    Exact: the best x is the plain least squares solution over the terms that it uses, so every
    set of terms is tried. Meant for a handful of them.
    """
    best, least = np.zeros(matrix.shape[1]), float(target @ target)
    scale = np.linalg.norm(matrix, axis=0)
    used = np.flatnonzero(scale)
    for count in range(1, len(used) + 1):
        for chosen in itertools.combinations(used.tolist(), count):
            part = matrix[:, chosen] / scale[list(chosen)]
            x = np.linalg.lstsq(part, target, rcond=None)[0]
            residual = part @ x - target
            loss = float(residual @ residual)
            if loss < least and x.min() >= 0:
                best, least = np.zeros(matrix.shape[1]), loss
                best[list(chosen)] = x / scale[list(chosen)]
    return best


def fit(samples: Sequence[Sample]) -> SpanCost:
    """The cost with the least squared relative error over the samples; at least one is needed."""
    seconds = np.array([sample.seconds for sample in samples])  # [n]
    most = max(sample.size.rows for sample in samples)
    found = []
    for knee in (knee for knee in _KNEES if knee < most or not knee):
        rows = np.array([features(sample.size, knee) for sample in samples])  # [n, terms]
        matrix = rows / seconds[:, None]
        terms = nnls(matrix, np.ones(len(seconds)))
        loss = float(((matrix @ terms - 1) ** 2).sum())
        values = zip(SpanCost.__struct_fields__, (*terms.tolist(), knee), strict=True)
        found.append((loss, SpanCost(**dict(values))))
    return min(found, key=lambda pair: pair[0])[1]


def error_of(cost: SpanCost, samples: Sequence[Sample]) -> FitError:
    """How far the estimates are from hops that the fit has not seen."""
    errors = [abs(cost.seconds(sample.size) / sample.seconds - 1) for sample in samples]
    median, p95 = np.percentile(errors, (50, 95)).tolist()
    return FitError(median, p95, len(errors))
