"""Virtual tokens: rows that a model puts before every prompt, and that no user sent.

They stand at positions 0 .. n-1 and are computed, kept and shared like any row, but for this:

    token id   -1, -2, ..: no text has these, so no text's pages have their keys
    prompt     their hidden states behind the embedding are given
    prefix     their keys and values are given in every layer, the keys as if rotated; nothing
               else that is computed of these rows is read
    counting   no usage, penalty, limit or error counts them; positions do, and so does the length
               that dynamic rope scaling goes by, as in transformers
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from blockllm.core import (
    Chain,
    EmbedFunction,
    Function,
    LayerFunction,
    PrefixTarget,
    PromptTarget,
    keeps_kv,
)
from blockllm.errors import UnsupportedModel


class VirtualRows(NamedTuple):
    """The rows of a hop that are virtual tokens."""

    rows: NDArray[np.int64]  # [v] ascending
    numbers: NDArray[np.int64]  # [v] which virtual token each is, from 0


class Virtual(NamedTuple):
    """The virtual tokens of a model."""

    num_tokens: int
    is_prefix: bool  # their keys and values are given

    def ids(self) -> NDArray[np.int64]:
        """What stands for them among token ids. [num_tokens]"""
        return -1 - np.arange(self.num_tokens)


def virtual_tokens(chain: Chain, max_context: int) -> Virtual:
    """The virtual tokens of a model. Raises UnsupportedModel unless either its embedding or all its
    decoder layers give them, equally many, and a prompt has room behind them."""
    count = chain.num_virtual
    if not count:
        return Virtual(0, False)
    functions = [layer.function for entry in chain.entries for layer in entry.block.layers]
    layers = [i for i, f in enumerate(functions) if keeps_kv(f)]
    given = dict(_given(chain))
    if sorted(given) not in ([0], layers) or not all(
        _fits(functions[i], target, count) for i, target in given.items()
    ):
        raise UnsupportedModel(
            f"{chain.model}: expected its {count} virtual tokens from the embedding, or as keys "
            "and values from every layer"
        )
    if count + 1 >= max_context:
        raise UnsupportedModel(
            f"{chain.model}: {count} virtual tokens leave no room in a context of {max_context}"
        )
    return Virtual(count, sorted(given) == layers)


def _given(chain: Chain) -> Iterator[tuple[int, PrefixTarget | PromptTarget]]:
    """What gives virtual tokens, and at which of the chain's layers."""
    first = 0
    for entry in chain.entries:
        for key, group in entry.delta.targets.items() if entry.delta else ():
            for target in group:
                if isinstance(target, PrefixTarget | PromptTarget):
                    yield first + int(key.partition(".")[0]), target
        first += len(entry.block.layers)


def _fits(function: Function, target: PrefixTarget | PromptTarget, count: int) -> bool:
    if isinstance(target, PrefixTarget) and isinstance(function, LayerFunction):
        shape = (count, function.num_kv_heads, function.head_dim)
        return target.keys.shape == target.values.shape == shape
    if isinstance(target, PromptTarget) and isinstance(function, EmbedFunction):
        return target.rows.shape == (count, function.hidden_size)
    return False
