"""What torch draws on a CPU, without torch: PEFT saves seeds where places could be drawn again."""

from __future__ import annotations

import math

import numpy as np

from blockllm.errors import UnsupportedModel
from blockllm.zoo.arrays import Floats, Integers

# torch draws longer permutations in another way
_LONGEST = (1 << 32) // 20


def seeded(seed: int) -> np.random.MT19937:
    """The generator of `torch.Generator().manual_seed(seed)`."""
    twister = np.random.MT19937()
    twister._legacy_seeding(seed)  # numpy's own way to seed mixes more
    return twister


def kaiming(twister: np.random.MT19937, shape: tuple[int, int]) -> Floats:
    """What `torch.nn.init.kaiming_uniform_` draws for a matrix of fp32."""
    bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(shape[1]))
    low, high = np.float32(-bound), np.float32(bound)
    units = (twister.random_raw(shape[0] * shape[1]) & 0xFFFFFF) * 2.0**-24
    # one rounding, as of torch's fused multiplication and addition
    return (units * np.float64(high - low) + low).astype(np.float32).reshape(shape)


def permutation(size: int, count: int, seed: int) -> Integers:
    """The first numbers of `torch.randperm(size)` with a generator of that seed: of each step of
    its shuffle only the element that stays is kept.

    Raises UnsupportedModel for sizes of more than 214 million.
    """
    if size >= _LONGEST:
        raise UnsupportedModel(
            f"places drawn among {size:,} elements of a weight are not supported (at most "
            f"{_LONGEST:,}); merge the adapter into its base"
        )
    draws = seeded(seed).random_raw(count).astype(np.int64)
    moved: dict[int, int] = {}  # elements that are not in their own places
    found = np.empty(count, np.int64)
    for index, draw in enumerate(draws.tolist()):
        other = index + draw % (size - index)
        found[index] = moved.get(other, other)
        moved[other] = moved.get(index, index)
    return found
