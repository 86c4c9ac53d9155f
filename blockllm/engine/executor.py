"""Runs hops: owns the weights of all blocks and deltas, and the KV tensors' use."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch

from blockllm.chain import Span, SpanPlan
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
    Rope,
    Target,
)
from blockllm.engine.attention import Attention, AttentionRows
from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.batch import Hop, Segment, fill_tokens
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.models.bridge import BridgeLayer
from blockllm.engine.models.changes import Targets
from blockllm.engine.models.decoder import DecoderLayer, DecoderStack
from blockllm.engine.models.embedding import Embedding, TableLoader
from blockllm.engine.models.linear import Linear, Loader
from blockllm.engine.models.norm import Norm
from blockllm.engine.models.rope import RopeTable, RotaryEmbedding
from blockllm.engine.models.segments import Segments
from blockllm.engine.transfer import upload


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


class BlockExecutor:
    """One block with its weights."""

    def __init__(self, block: Block, load: TableLoader) -> None:
        self.layers = [bind_layer(layer, load) for layer in block.layers]
        self.parts = _stack(self.layers)
        self.adapters: dict[str, int] = {}  # delta id → its index in the block
        # whether some delta is applied segment by segment from the host
        self.loops_segments = False

    def attach(self, deltas: Sequence[Delta], load: Loader) -> None:
        """Take every model's changes; rows of its segments use them from now on."""
        self.adapters = {delta.id: i for i, delta in enumerate(deltas)}
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
        for part in self.parts:
            if isinstance(part, DecoderStack):
                part.refresh()


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


def _is_looped(module: str, target: Target) -> bool:
    """Whether the rows of every hop of the target's model need the host."""
    if isinstance(target, LoraTarget):
        return module == "embed"
    return not isinstance(target, PrefixTarget | PromptTarget)  # these: virtual tokens only


class Executor:
    """Applies spans to batches of rows. Stateless between hops but for weights and KV."""

    def __init__(
        self,
        plan: SpanPlan,
        load: TableLoader,
        caches: list[KVCache],
        attention: Attention,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._caches, self._attention = caches, attention
        self._dtype, self._device = dtype, device
        self._blocks = {b.id: BlockExecutor(b, load) for span in plan.spans for b in span.blocks}
        self._rotaries = self._make_rotaries()
        self._no_segments = Segments((), {}, 0, device)
        deltas: dict[str, dict[str, Delta]] = {}  # by block, by id
        for route in plan.routes.values():
            for entry in route.chain.entries:
                if entry.delta is not None:
                    deltas.setdefault(entry.block.id, {})[entry.delta.id] = entry.delta
        for block, own in deltas.items():
            self._blocks[block].attach(list(own.values()), load)

    def _make_rotaries(self) -> dict[DecoderLayer, RotaryEmbedding]:
        """Of every layer that has attention; those which rotate alike share one."""
        known: dict[tuple[Rope, int], RotaryEmbedding] = {}
        of_layer = {}
        for layer in (layer for block in self._blocks.values() for layer in block.layers):
            if isinstance(layer, DecoderLayer) and layer.keeps_kv:
                key = (layer.function.rope, layer.function.head_dim)
                if key not in known:
                    known[key] = RotaryEmbedding(*key, self._device, self._dtype)
                of_layer[layer] = known[key]
        return of_layer

    def run(self, hop: Hop, span: Span) -> torch.Tensor:
        """Hidden states of the hop's rows [rows, hidden]; behind a head, logits of the members
        that want them [members, vocab]. To be called in torch's inference mode."""
        x = hop.hidden
        kv_layer = hop.plan.stop.first_kv_layer
        for i, block in enumerate(span.blocks):
            executor = self._blocks[block.id]
            segments = self._segments(hop, i, executor)
            for part in executor.parts:
                if isinstance(part, EmbedLayer):
                    x = part.embedding(self._tokens(hop), segments)
                    continue
                assert x is not None
                if isinstance(part, DecoderStack):
                    x = part(x, segments, functools.partial(self._bind, hop), kv_layer)
                    kv_layer += part.num_kv_layers
                elif isinstance(part, HeadLayer):
                    x = self._head(part, x, hop, segments)
                else:
                    x = part(x)
        assert x is not None
        return x

    def _tokens(self, hop: Hop) -> torch.Tensor:
        (tokens,) = upload([hop.turn.tokens[hop.rows]], self._device)
        fill_tokens(tokens, hop)
        return tokens

    def _segments(self, hop: Hop, index: int, block: BlockExecutor) -> Segments:
        host = hop.segments[index]
        if not host:
            return self._no_segments
        return Segments(host, block.adapters, len(hop.rows), self._device, virtual=hop.virtual)

    def _bind(self, hop: Hop, layer: DecoderLayer, kv_layer: int) -> BoundAttention | None:
        """The layer's attention, bound to the rows' rotations and pages; None if it has none."""
        if not layer.keeps_kv:
            return None
        rotary = self._rotaries[layer]
        rows, table = hop.common.attention, hop.common.rope_tables.get(rotary)
        if rows is None or table is None:
            with hop.turn.timeline.part("gather"):
                if rows is None:
                    rows = hop.common.attention = self._rows(hop, self._cache_of(hop))
                table = hop.common.rope_tables[rotary] = self._make_table(hop, rotary)
        return BoundAttention(self._attention, rows, table, *rows.locate(kv_layer))

    def _cache_of(self, hop: Hop) -> KVCache:
        # whoever meets where keys and values are kept keeps them alike
        return self._caches[hop.turn.sequences[int(hop.members[0])].state.kv_class]

    def _rows(self, hop: Hop, cache: KVCache) -> AttentionRows:
        return AttentionRows(hop, cache)

    def _make_table(self, hop: Hop, rotary: RotaryEmbedding) -> RopeTable:
        turn, run = hop.turn, hop.plan.carried.run
        table = turn.rope_tables.get(rotary)
        if table is None:
            where = upload([turn.positions, turn.rope_lengths], self._device)
            table = rotary.table(*where)
            if turn.virtual is not None:
                (unrotated,) = upload([turn.unrotated()], self._device)
                table.cos[unrotated], table.sin[unrotated] = 1.0, 0.0
            turn.rope_tables[rotary] = table
        if run is not None:
            return RopeTable(table.cos[run], table.sin[run])
        (rows,) = upload([hop.rows], self._device)
        return RopeTable(table.cos[rows], table.sin[rows])

    def _head(
        self, layer: HeadLayer, x: torch.Tensor, hop: Hop, segments: Segments
    ) -> torch.Tensor:
        if hop.turn.wants_every_row:
            return layer(x, segments)
        wanted = hop.turn.wants_logits[hop.members]  # [k]
        last = hop.starts[1:][wanted] - 1  # [wanted] row of each member's last token
        if len(last) < len(hop.rows):
            (selected,) = upload([last], self._device)
            x = x[selected]
            # segments count rows; behind this selection a row is a member
            edges = np.searchsorted(last, [(s.start, s.stop) for s in segments]).tolist()
            moved = [
                Segment(first, end, s.delta)
                for (first, end), s in zip(edges, segments, strict=True)
            ]
            segments = Segments(moved, segments.adapters, len(x), self._device)
        return layer(x, segments)
