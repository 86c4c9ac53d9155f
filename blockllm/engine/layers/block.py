"""One block with its weights, and what hops through several blocks do in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blockllm.chain.spans import num_kv_layers
from blockllm.core import (
    Block,
    Delta,
    EmbedFunction,
    HeadFunction,
    LoraTarget,
    PrefixTarget,
    PromptTarget,
    Target,
)
from blockllm.engine.layers.section import BoundLayer, Section
from blockllm.engine.weights.tensors import Loader, TableLoader


class BlockDelta(NamedTuple):
    """A delta of a block, and the models that add it."""

    delta: Delta
    models: frozenset[str]


class BlockExecutor:
    """One block with its weights."""

    def __init__(self, block: Block, load: TableLoader) -> None:
        self.layers = [BoundLayer(layer, load) for layer in block.layers]
        self.num_kv_layers = num_kv_layers(block)
        self.adapters: dict[str, int] = {}  # delta id → its index in the block
        # by this index, the models that add it and whether it is low-rank updates only
        self.riders: tuple[tuple[frozenset[str], bool], ...] = ()
        self.unfused: frozenset[str] = frozenset()  # ids of deltas that are more than that
        # whether some delta is applied segment by segment from the host
        self.loops_segments = False

    def attach(self, added: Sequence[BlockDelta], load: Loader) -> None:
        """Take every model's changes; rows of its segments use them from now on."""
        deltas = [each.delta for each in added]
        self.adapters = {delta.id: i for i, delta in enumerate(deltas)}
        self.riders = tuple((models, _is_low_rank(delta)) for delta, models in added)
        self.unfused = frozenset(delta.id for delta in deltas if not _is_low_rank(delta))
        by_layer: dict[int, list[dict[str, tuple[Target, ...]]]] = {}
        for i, delta in enumerate(deltas):
            for key, group in delta.targets.items():
                position, _, module = key.partition(".")
                layer = int(position)
                if layer not in by_layer:
                    by_layer[layer] = [{} for _ in deltas]
                by_layer[layer][i][module] = group
                if any(_is_looped(module, target) for target in group):
                    self.loops_segments = True
        for index, adapters in by_layer.items():
            self.layers[index].attach(adapters, load)


def _is_low_rank(delta: Delta) -> bool:
    targets = (target for group in delta.targets.values() for target in group)
    return all(isinstance(target, LoraTarget) for target in targets)


def _is_looped(module: str, target: Target) -> bool:
    """Whether the rows of every hop of the target's model need the host."""
    if isinstance(target, LoraTarget):
        return module == "embed"
    return not isinstance(target, PrefixTarget | PromptTarget)  # these: virtual tokens only


class SpanProgram:
    """What hops through some blocks do, in order. Layers of neighbouring blocks are one section
    where the rows add the same deltas, by the same numbers, in both."""

    def __init__(self, blocks: Sequence[BlockExecutor], has_segments: bool) -> None:
        """`has_segments`: whether some rows add deltas."""
        self.blocks, self._has_segments = blocks, has_segments
        self.num_kv_layers = sum(block.num_kv_layers for block in blocks)
        self.sections: list[Section] = []
        group: list[tuple[int, BoundLayer]] = []  # the next section's, with their blocks' numbers
        for i, block in enumerate(blocks):
            for layer in block.layers:
                if group and not self._goes_on(group, i, layer):
                    self.sections.append(self._section(group))
                    group = []
                group.append((i, layer))
        self.sections.append(self._section(group))
        self.gives_logits = isinstance(group[-1][1].function, HeadFunction)

    def _section(self, group: Sequence[tuple[int, BoundLayer]]) -> Section:
        number = next((i for i, layer in group if not _is_end(layer)), group[0][0])
        block, layers = self.blocks[number], [layer for _, layer in group]
        looks_up = isinstance(layers[0].function, EmbedFunction) and layers[0].is_changed
        unfused = frozenset(block.adapters) if looks_up else block.unfused
        return Section(layers, number, unfused)

    def _goes_on(
        self, group: Sequence[tuple[int, BoundLayer]], block: int, layer: BoundLayer
    ) -> bool:
        """Whether the layer can be part of the section."""
        before = group[-1][1]
        if (before.native is None) != (layer.native is None):
            return False
        rotations = [each.rotation for _, each in group if each.rotation is not None]
        if layer.rotation is not None and rotations and rotations[0] != layer.rotation:
            return False
        if not self._has_segments:
            return True
        if any(_is_end(each) and each.is_changed for each in (before, layer)):
            return False
        decoders = [i for i, each in group if not _is_end(each)]
        if _is_end(layer) or not decoders or decoders[0] == block:
            return True
        return self.blocks[decoders[0]].riders == self.blocks[block].riders


def _is_end(layer: BoundLayer) -> bool:
    """Whether deltas that decoder layers have leave it as it is."""
    return isinstance(layer.function, EmbedFunction | HeadFunction)
