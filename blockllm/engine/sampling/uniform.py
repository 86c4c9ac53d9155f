"""Counter-based random numbers: row by (seed, position), so a request's draws never depend on
its neighbours in the batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.float64]:
    """One number in [0, 1) per (seed, position): two rounds of SplitMix64's mixer
    (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014)."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(seeds + golden) + positions * golden)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
