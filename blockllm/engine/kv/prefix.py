"""Keys of the prefix index (design law 5): KV is named by what produced it.

    key of page j of a block = (ids of all blocks and deltas up to and including this one,
                                tenant salt, tokens of pages 0..j)

Tokens are hashed once per sequence, in a chain over pages; the upstream part once per route.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from blockllm.core import Chain

_DIGEST = 16  # bytes; 128 bits keep accidental and forged collisions out of reach


def upstream_keys(chain: Chain) -> list[bytes]:
    """One digest per chain entry: ids of the blocks and deltas up to and including it."""
    digest, keys = b"", []
    for entry in chain.entries:
        delta = entry.delta.id if entry.delta else ""
        digest = blake3(digest + f"{entry.block.id}+{delta};".encode()).digest(_DIGEST)
        keys.append(digest)
    return keys


class PageHashes:
    """Chained hashes of a sequence's token pages, computed as the tokens become known."""

    def __init__(self, salt: SequenceOf[str], page_size: int) -> None:
        text = "".join(f"{len(part)}:{part}" for part in salt)  # ("a","bc") is not ("ab","c")
        self._last = blake3(text.encode()).digest(_DIGEST)
        self._page_size = page_size
        self._hashes: list[bytes] = []

    def upto(self, tokens: NDArray[np.int64], num_pages: int) -> list[bytes]:
        """Hashes of the first `num_pages` pages; `tokens` must hold at least that many."""
        for page in range(len(self._hashes), num_pages):
            start = page * self._page_size
            run = tokens[start : start + self._page_size].tobytes()
            self._last = blake3(self._last + run).digest(_DIGEST)
            self._hashes.append(self._last)
        return self._hashes[:num_pages]
