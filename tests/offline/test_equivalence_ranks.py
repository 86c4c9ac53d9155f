"""Rank correlation against what is known by hand."""

from __future__ import annotations

import pytest

from blockllm.offline.equivalence.ranks import spearman


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 10), (2, 100), (3, 1000)], 1.0),
        ([(1, 3), (2, 2), (3, 1)], -1.0),
        ([(1, 1), (2, 3), (3, 2), (4, 4)], 0.8),
        ([(1, 1), (1, 2), (2, 3), (3, 4)], 0.9486832980505138),  # ties share rank 1.5
        ([(5, 1), (5, 2), (5, 3)], 0.0),
    ],
)
def test_spearman(points: list[tuple[float, float]], expected: float) -> None:
    assert spearman(points) == pytest.approx(expected)
