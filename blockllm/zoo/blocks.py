"""The blocks of a set of models: derived from their layers and deltas, never stored.

Layers of which models share one half are cut in two first; then `partition` joins neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from blockllm.core import Block, ChainEntry, Delta, Layer, LayerFunction, Target
from blockllm.zoo.digest import block_id, delta_id
from blockllm.zoo.halves import find_halves, part_of
from blockllm.zoo.partition import Step, partition
from blockllm.zoo.records import Record


class _Piece(NamedTuple):
    """A layer of a model, or half of one, and what the model changes there by module."""

    layer: Layer
    targets: dict[str, tuple[Target, ...]]


class Blocks:
    """The blocks of all models of a zoo, and each model as a chain of them."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        layers = {layer.digest: layer for r in records.values() for layer in r.layers}
        halves = find_halves(layers.values())
        self._pieces = {name: _pieces(record, halves) for name, record in records.items()}
        known = {p.layer.digest: p.layer for pieces in self._pieces.values() for p in pieces}
        runs = partition(map(_steps, self._pieces.values()))
        self.all = [Block(block_id(run), tuple(known[digest] for digest in run)) for run in runs]
        self._of_layer = {layer.digest: block for block in self.all for layer in block.layers}

    def entries(self, name: str) -> tuple[ChainEntry, ...]:
        """The model as blocks and deltas."""
        pieces, entries, start = self._pieces[name], [], 0
        while start < len(pieces):
            block = self._of_layer[pieces[start].layer.digest]
            entries.append(ChainEntry(block, _delta(pieces[start : start + len(block.layers)])))
            start += len(block.layers)
        return tuple(entries)


def _pieces(record: Record, halves: Mapping[str, tuple[Layer, Layer]]) -> list[_Piece]:
    pieces = []
    for position, layer in enumerate(record.layers):
        targets = record.targets.get(position, {})
        if layer.digest not in halves:
            pieces.append(_Piece(layer, targets))
            continue
        for half in halves[layer.digest]:
            assert isinstance(half.function, LayerFunction)
            part = half.function.part
            pieces.append(_Piece(half, {m: g for m, g in targets.items() if part_of(m) == part}))
    return pieces


def _steps(pieces: list[_Piece]) -> list[Step]:
    return [
        Step(layer.digest, str(layer.function.__struct_config__.tag), bool(targets))
        for layer, targets in pieces
    ]


def _delta(pieces: list[_Piece]) -> Delta | None:
    targets = {
        f"{index}.{module}": group
        for index, piece in enumerate(pieces)
        for module, group in piece.targets.items()
    }
    return Delta(delta_id(targets), targets) if targets else None
