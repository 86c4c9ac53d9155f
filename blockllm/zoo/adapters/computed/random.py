"""What torch draws on a CPU, without torch: PEFT saves seeds where places could be drawn again."""

from __future__ import annotations

import numpy as np

from blockllm.errors import UnsupportedModel
from blockllm.zoo.arrays import Integers

# torch draws longer permutations in another way
_LONGEST = (1 << 32) // 20


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
    twister = np.random.MT19937()
    twister._legacy_seeding(seed)  # as torch seeds; `seed` of numpy's own classes mixes more
    draws = twister.random_raw(count).astype(np.int64)
    moved: dict[int, int] = {}  # elements that are not in their own places
    found = np.empty(count, np.int64)
    for index, draw in enumerate(draws.tolist()):
        other = index + draw % (size - index)
        found[index] = moved.get(other, other)
        moved[other] = moved.get(index, index)
    return found
