"""The blocks of a set of models: derived from their layers and deltas, never stored.

Layers of which models share only one half are cut in two first; then `partition` joins neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from blockllm.core import Block, ChainEntry, Delta, Layer, LayerFunction, Target
from blockllm.zoo.digest import block_id, delta_id
from blockllm.zoo.halves import find_halves, part_of
from blockllm.zoo.outline import Outline
from blockllm.zoo.partition import ChainLayer, partition
from blockllm.zoo.records import Record


class Blocks:
    """The blocks of all models of a zoo, and each model as a chain of them."""

    def __init__(self, outlines: Iterable[Outline], layers: Mapping[str, Layer]) -> None:
        """`layers` by digest: at least those of the outlines."""
        self._layers = layers
        self._halves = find_halves(layers.values())
        known: dict[str, Layer] = {}
        models = []
        for outline in dict.fromkeys(outlines):
            outlined = []
            for position, digest in enumerate(outline.layers):
                for piece in self._pieces(layers[digest]):
                    known[piece.digest] = piece
                    outlined.append(_chain_layer(piece, outline.modules(position)))
            models.append(outlined)
        runs = [tuple(known[digest] for digest in run) for run in partition(models)]
        self.all = [Block(block_id(layer.digest for layer in run), run) for run in runs]
        self._of_piece = {layer.digest: block for block in self.all for layer in block.layers}

    def of(self, outline: Outline) -> list[Block]:
        """The blocks of a model in order."""
        layers = (self._layers[digest] for digest in outline.layers)
        return self._cut([piece for layer in layers for piece in self._pieces(layer)])

    def entries(self, record: Record) -> tuple[ChainEntry, ...]:
        """The model as blocks and deltas."""
        pieces, changes = [], []
        for position, layer in enumerate(record.layers):
            targets = record.targets.get(position, {})
            for piece in self._pieces(layer):
                pieces.append(piece)
                changes.append({m: group for m, group in targets.items() if _has(piece, m)})
        entries, start = [], 0
        for block in self._cut(pieces):
            end = start + len(block.layers)
            entries.append(ChainEntry(block, _delta(changes[start:end])))
            start = end
        return tuple(entries)

    def _pieces(self, layer: Layer) -> tuple[Layer, ...]:
        return self._halves.get(layer.digest, (layer,))

    def _cut(self, pieces: list[Layer]) -> list[Block]:
        blocks: list[Block] = []
        start = 0
        while start < len(pieces):
            blocks.append(self._of_piece[pieces[start].digest])
            start += len(blocks[-1].layers)
        return blocks


def _has(piece: Layer, module: str) -> bool:
    part = piece.function.part if isinstance(piece.function, LayerFunction) else "whole"
    return part in ("whole", part_of(module))


def _chain_layer(piece: Layer, modules: Iterable[str]) -> ChainLayer:
    has_delta = any(_has(piece, module) for module in modules)
    return ChainLayer(piece.digest, str(piece.function.__struct_config__.tag), has_delta)


def _delta(changes: list[dict[str, tuple[Target, ...]]]) -> Delta | None:
    targets = {
        f"{index}.{module}": group
        for index, modules in enumerate(changes)
        for module, group in modules.items()
    }
    return Delta(delta_id(targets), targets) if targets else None
