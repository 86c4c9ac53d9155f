"""Inputs without a fuzzer's guidance: seeds, then random changes of them."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tools.campaigns.draws import Draws, flipped
from tools.campaigns.oracle import Target


def inputs(target: Target, seed: int, count: int) -> Iterator[bytes]:
    """`count` inputs that follow from `seed`: first the target's own, as far as they reach."""
    yield from target.seeds[:count]
    chance = random.Random(seed)
    for _ in range(count - len(target.seeds)):
        data = chance.choice(target.seeds)
        if chance.random() < 0.7:
            data = flipped(data, Draws(chance.randbytes(chance.randrange(1, 48))))
        else:  # what follows the first choices is new
            data = data[: chance.randrange(4)] + chance.randbytes(chance.randrange(64))
        yield data[: target.limit]
