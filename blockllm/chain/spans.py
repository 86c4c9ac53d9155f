"""Merge the blocks of all served chains into spans, and give each model its route over them.

    chain A: e  x  y  h          spans: [e x] [y] [z] [h]
    chain B: e  x  z  h          routes: A = 0 1 3, B = 0 2 3

Two neighbouring blocks are one span when every chain that has either has both, side by side:
then no chain joins or leaves between them and they run as one unit (design law 4).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import msgspec

from blockllm.core import Block, Chain, Delta, keeps_kv

_EDGE = ""  # stands for "the chain begins or ends here"


class Span(msgspec.Struct, frozen=True):
    """Neighbouring blocks that run as one unit, and the models that ride on it."""

    index: int
    blocks: tuple[Block, ...]
    models: tuple[str, ...]

    @property
    def name(self) -> str:
        """A short label for listings and metrics."""
        first, last = self.blocks[0].id[:8], self.blocks[-1].id[:8]
        return first if first == last else f"{first}-{last}"


class Stop(msgspec.Struct, frozen=True):
    """One span on a route: the model's deltas there, and how many layers lie before it."""

    span: int
    deltas: tuple[Delta | None, ...]  # one per block of the span
    depth: int  # layers before this stop, embedding included
    first_kv_layer: int  # decoder layers before this stop
    ends_attention: bool  # no layer with attention lies behind it


class Route(msgspec.Struct, frozen=True):
    """The way of one model through the spans."""

    chain: Chain
    stops: tuple[Stop, ...]


class SpanPlan(msgspec.Struct, frozen=True):
    """All spans of one agent and each model's route."""

    spans: tuple[Span, ...]
    routes: dict[str, Route]


def num_kv_layers(block: Block) -> int:
    """How many layers of the block keep keys and values."""
    return sum(keeps_kv(layer.function) for layer in block.layers)


def plan_spans(chains: Iterable[Chain], merge: bool = True) -> SpanPlan:
    """Spans and routes of the given chains; spans are numbered in order of first appearance.
    Unless `merge`, every block is a span of its own."""
    chains = list(chains)
    follows, precedes = _neighbours(chains)
    spans: dict[tuple[str, ...], list[Block]] = {}
    riders: dict[tuple[str, ...], dict[str, None]] = {}
    ways: dict[str, list[tuple[str, ...]]] = {}
    for chain in chains:
        ways[chain.model] = []
        blocks = [entry.block for entry in chain.entries]
        for run in _runs(blocks, follows, precedes) if merge else [[b] for b in blocks]:
            key = tuple(block.id for block in run)
            spans.setdefault(key, run)
            riders.setdefault(key, {})[chain.model] = None
            ways[chain.model].append(key)
    index = {key: i for i, key in enumerate(spans)}
    return SpanPlan(
        spans=tuple(Span(index[k], tuple(run), tuple(riders[k])) for k, run in spans.items()),
        routes={c.model: _route(c, [(index[k], len(k)) for k in ways[c.model]]) for c in chains},
    )


def _neighbours(chains: list[Chain]) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    follows: dict[str, set[str]] = {}
    precedes: dict[str, set[str]] = {}
    for chain in chains:
        ids = [_EDGE, *(entry.block.id for entry in chain.entries), _EDGE]
        for left, right in itertools.pairwise(ids):
            follows.setdefault(left, set()).add(right)
            precedes.setdefault(right, set()).add(left)
    return follows, precedes


def _runs(
    blocks: list[Block], follows: dict[str, set[str]], precedes: dict[str, set[str]]
) -> list[list[Block]]:
    runs = [[blocks[0]]]
    for left, right in itertools.pairwise(blocks):
        if follows[left.id] == {right.id} and precedes[right.id] == {left.id}:
            runs[-1].append(right)
        else:
            runs.append([right])
    return runs


def _route(chain: Chain, way: list[tuple[int, int]]) -> Route:
    stops, position, depth, kv_layers = [], 0, 0, 0
    all_kv_layers = sum(num_kv_layers(entry.block) for entry in chain.entries)
    for span, length in way:
        entries = chain.entries[position : position + length]
        deltas = tuple(entry.delta for entry in entries)
        first_kv_layer = kv_layers
        kv_layers += sum(num_kv_layers(entry.block) for entry in entries)
        stops.append(Stop(span, deltas, depth, first_kv_layer, kv_layers == all_kv_layers))
        position += length
        depth += sum(len(entry.block.layers) for entry in entries)
    return Route(chain, tuple(stops))
