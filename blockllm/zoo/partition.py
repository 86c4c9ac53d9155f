"""Where blocks are cut: as seldom as sharing allows.

model a   e 1 2 3 4 h       e│1 2│3 4│h
model b   e 1 2 5 6 h   →   e│1 2│5 6│h       a delta that ends inside a run cuts it too
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


class ChainLayer(NamedTuple):
    """One layer of one model: its digest, its kind, and whether the model adds a delta to it."""

    digest: str
    kind: str
    has_delta: bool = False


def partition(models: Iterable[Sequence[ChainLayer]]) -> list[tuple[str, ...]]:
    """Blocks as runs of layer digests; every digest is in exactly one.

    Two layers are in one block if wherever one occurs the other is beside it, both are of one
    kind, and no model's delta covers only one of them.
    """
    followers: dict[str, set[str | None]] = {}
    leaders: dict[str, set[str | None]] = {}
    apart: set[tuple[str, str]] = set()
    for layers in models:
        digests: list[str | None] = [None, *(layer.digest for layer in layers), None]
        for before, layer, after in zip(digests, layers, digests[2:], strict=False):
            leaders.setdefault(layer.digest, set()).add(before)
            followers.setdefault(layer.digest, set()).add(after)
        for left, right in pairwise(layers):
            if left.kind != right.kind or left.has_delta != right.has_delta:
                apart.add((left.digest, right.digest))
    joined: dict[str, str] = {}
    for left_digest, after_set in followers.items():
        (right_digest,) = after_set if len(after_set) == 1 else (None,)
        if right_digest is None or (left_digest, right_digest) in apart:
            continue
        if leaders[right_digest] == {left_digest}:
            joined[left_digest] = right_digest
    inner = set(joined.values())
    return [_run(first, joined) for first in followers if first not in inner]


def _run(first: str, joined: dict[str, str]) -> tuple[str, ...]:
    # no ring is possible: the last layer of every model is followed by nothing
    run = [first]
    while run[-1] in joined:
        run.append(joined[run[-1]])
    return tuple(run)
