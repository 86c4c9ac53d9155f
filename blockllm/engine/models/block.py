"""One block with its weights, and what hops through several blocks do in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

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
from blockllm.engine.models.bridge import BridgeLayer
from blockllm.engine.models.changes import Targets
from blockllm.engine.models.decoder import DecoderLayer, DecoderStack
from blockllm.engine.models.embedding import Embedding
from blockllm.engine.models.linear import Linear
from blockllm.engine.models.norm import Norm
from blockllm.engine.models.segments import Segments
from blockllm.engine.models.sources import Loader, TableLoader


class EmbedLayer:
    """Token ids → hidden states."""

    def __init__(self, layer: Layer, load: TableLoader) -> None:
        self.embedding = Embedding(load.table(layer.tensors["weight"]), load.dtype)

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes."""
        self.embedding.attach(adapters, load)


class HeadLayer:
    """Final norm and projection → logits, for rows whose next token is wanted."""

    def __init__(self, layer: Layer, load: Loader) -> None:
        assert isinstance(layer.function, HeadFunction)
        self._norm = Norm(load.load(layer.tensors["norm.weight"]), layer.function.norm_eps)
        kinds = ("weight", "bias", "scale")
        tensors = {f"head.{n}": t for n, t in layer.tensors.items() if n in kinds}
        self._projection = Linear(("head",), tensors, load)

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Take every model's changes."""
        self._norm.attach([targets.get("norm", ()) for targets in adapters], load)
        own = [{n: t for n, t in targets.items() if n == "head"} for targets in adapters]
        self._projection.attach(own, load)

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows, hidden] → logits [rows, vocab]"""
        return self._projection(self._norm(x, segments), segments)


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
        # by this index, who adds the delta and whether it is low-rank updates only
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
                own = by_layer.setdefault(int(position), [{} for _ in deltas])
                own[i][module] = group
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
    block: int  # which of theirs it is of: the first, where it is of several


class Passage:
    """What hops through some blocks do, in order. Decoder layers of neighbouring blocks are one
    native call where the rows add the same deltas, by the same numbers, in both."""

    def __init__(self, blocks: Sequence[BlockExecutor], has_segments: bool) -> None:
        """`has_segments`: whether some rows add deltas."""
        self.blocks = blocks
        self.num_kv_layers = sum(block.num_kv_layers for block in blocks)
        self.steps: list[Step] = []
        for i, block in enumerate(blocks):
            for part in block.parts:
                joined = None
                if self.steps:
                    before, first = self.steps[-1]
                    if not has_segments or blocks[first].riders == block.riders:
                        joined = _join(before, part)
                if joined is None:
                    self.steps.append(Step(part, i))
                else:
                    self.steps[-1] = Step(joined, first)


def _join(before: Part, behind: Part) -> DecoderStack | None:
    if isinstance(before, DecoderStack) and isinstance(behind, DecoderStack):
        return before.join(behind)
    return None
