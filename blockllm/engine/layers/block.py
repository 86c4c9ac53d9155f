"""One block with its weights, and what hops through several blocks do in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from blockllm.chain.spans import num_kv_layers
from blockllm.core import (
    Block,
    BridgeFunction,
    Delta,
    EmbedFunction,
    HeadFunction,
    Layer,
    LoraTarget,
    PrefixTarget,
    PromptTarget,
    Target,
)
from blockllm.engine.layers.bridge import BridgeLayer
from blockllm.engine.layers.decoder import DecoderLayer
from blockllm.engine.layers.ends import EmbedLayer, HeadLayer
from blockllm.engine.layers.stack import DecoderStack
from blockllm.engine.weights.tensors import Loader, TableLoader

AnyLayer = EmbedLayer | DecoderLayer | BridgeLayer | HeadLayer
Part = EmbedLayer | DecoderStack | BridgeLayer | HeadLayer  # of a block, as hops go through it


def bind_layer(layer: Layer, load: TableLoader) -> AnyLayer:
    """Give a layer's function its weights."""
    if isinstance(layer.function, EmbedFunction):
        return EmbedLayer(layer, load)
    if isinstance(layer.function, HeadFunction):
        return HeadLayer(layer, load)
    if isinstance(layer.function, BridgeFunction):
        return BridgeLayer(layer, load)
    return DecoderLayer(layer, load)


class Added(NamedTuple):
    """A delta of a block, and the models that add it."""

    delta: Delta
    models: frozenset[str]


class BlockExecutor:
    """One block with its weights."""

    def __init__(self, block: Block, load: TableLoader) -> None:
        self.layers = [bind_layer(layer, load) for layer in block.layers]
        self.parts = _stack(self.layers)
        self.num_kv_layers = num_kv_layers(block)
        self.adapters: dict[str, int] = {}  # delta id → its index in the block
        # by this index, the models that add it and whether it is low-rank updates only
        self.riders: tuple[tuple[frozenset[str], bool], ...] = ()
        # whether some delta is applied segment by segment from the host
        self.loops_segments = False

    def attach(self, added: Sequence[Added], load: Loader) -> None:
        """Take every model's changes; rows of its segments use them from now on."""
        deltas = [each.delta for each in added]
        self.adapters = {delta.id: i for i, delta in enumerate(deltas)}
        self.riders = tuple((models, _is_low_rank(delta)) for delta, models in added)
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
        unfused = frozenset(delta.id for delta in deltas if not _is_low_rank(delta))
        for part in self.parts:
            if isinstance(part, DecoderStack):
                part.refresh(unfused)


def _stack(layers: Sequence[AnyLayer]) -> list[Part]:
    """The layers in order; decoder layers that follow one another are one part."""
    parts: list[Part] = []
    stack: list[DecoderLayer] = []
    for layer in layers:
        if isinstance(layer, DecoderLayer):
            stack.append(layer)
            continue
        if stack:
            parts.append(DecoderStack(stack))
            stack = []
        parts.append(layer)
    return [*parts, DecoderStack(stack)] if stack else parts


def _is_low_rank(delta: Delta) -> bool:
    targets = (target for group in delta.targets.values() for target in group)
    return all(isinstance(target, LoraTarget) for target in targets)


def _is_looped(module: str, target: Target) -> bool:
    """Whether the rows of every hop of the target's model need the host."""
    if isinstance(target, LoraTarget):
        return module == "embed"
    return not isinstance(target, PrefixTarget | PromptTarget)  # these: virtual tokens only


class Step(NamedTuple):
    """A part that hops go through as one."""

    part: Part
    block: int  # whose deltas count: the first one's, where decoder layers of several are one


class Passage:
    """What hops through some blocks do, in order. Layers of neighbouring blocks are one native call
    where the rows add the same deltas, by the same numbers, in both."""

    def __init__(self, blocks: Sequence[BlockExecutor], has_segments: bool) -> None:
        """`has_segments`: whether some rows add deltas."""
        self.blocks, self._has_segments = blocks, has_segments
        self.num_kv_layers = sum(block.num_kv_layers for block in blocks)
        self.steps: list[Step] = []
        for i, block in enumerate(blocks):
            for part in block.parts:
                step = Step(part, i)
                joined = self._join(self.steps[-1], step) if self.steps else None
                if joined is not None:
                    self.steps.pop()
                self.steps.append(joined or step)

    def _join(self, before: Step, behind: Step) -> Step | None:
        left, right = before.part, behind.part
        stack, block = None, before.block
        if isinstance(left, EmbedLayer) and isinstance(right, DecoderStack):
            if not (self._has_segments and left.is_changed):
                stack, block = right.begin_with(left), behind.block
        elif isinstance(left, DecoderStack) and isinstance(right, HeadLayer):
            if not (self._has_segments and right.is_changed):
                stack = left.end_with(right)
        elif isinstance(left, DecoderStack) and isinstance(right, DecoderStack):
            riders = self.blocks[before.block].riders
            if not self._has_segments or riders == self.blocks[behind.block].riders:
                stack = left.join(right)
        return None if stack is None else Step(stack, block)
