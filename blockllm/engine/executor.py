"""Runs hops: owns the weights of all blocks and deltas, and the KV tensors' use."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from blockllm.chain import Span, SpanPlan
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
    Rope,
    Target,
)
from blockllm.engine.attention import Attention, AttentionRows
from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.attention.rows import gather
from blockllm.engine.batch import Hop, Ints, fill_tokens
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.models.bridge import BridgeLayer
from blockllm.engine.models.changes import Targets
from blockllm.engine.models.decoder import DecoderLayer, DecoderStack
from blockllm.engine.models.embedding import Embedding
from blockllm.engine.models.linear import Linear
from blockllm.engine.models.norm import Norm
from blockllm.engine.models.rope import RopeTable, RotaryEmbedding
from blockllm.engine.models.segments import Kept, Segments
from blockllm.engine.models.sources import Loader, TableLoader
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
        self.num_kv_layers = num_kv_layers(block)
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
        that want them [members, vocab]. To be called in torch's inference mode.

        Behind the last attention of their models only rows whose next token is wanted are
        computed; hidden states of the others are zero.
        """
        x, kv_layer = hop.hidden, hop.plan.stop.first_kv_layer
        end = kv_layer + sum(self._blocks[block.id].num_kv_layers for block in span.blocks)
        wanted = hop.wanted if hop.plan.ends_attention else None
        dropped = False  # whether the rows that are not wanted have been
        for i, block in enumerate(span.blocks):
            executor = self._blocks[block.id]
            segments = self._segments(hop, i, executor)
            kept = None if wanted is None else self._kept(wanted, segments)
            for part in executor.parts:
                if kept is not None and dropped:
                    segments, kept = kept.segments, None
                if isinstance(part, EmbedLayer):
                    x = part.embedding(self._tokens(hop), segments)
                    continue
                assert x is not None
                if isinstance(part, DecoderStack):
                    first, kv_layer = kv_layer, kv_layer + part.num_kv_layers
                    here = kept if kv_layer == end else None
                    x = part(x, segments, functools.partial(self._bind, hop), first, here)
                    dropped = dropped or here is not None
                elif isinstance(part, HeadLayer):
                    return part(x, segments) if kept is None else part(x[kept.rows], kept.segments)
                else:
                    x = part(x)
        assert x is not None
        return self._restore(x, wanted, hop) if dropped and wanted is not None else x

    def _kept(self, wanted: Ints, segments: Segments) -> Kept:
        (rows,) = upload([wanted], self._device)
        return Kept(rows, segments.select(wanted))

    def _restore(self, x: torch.Tensor, wanted: Ints, hop: Hop) -> torch.Tensor:
        (rows,) = upload([wanted], self._device)
        out = x.new_zeros(len(hop.rows), x.shape[1])
        out[rows] = x
        return out

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
                    rows = hop.common.attention = self._rows(hop)
                table = hop.common.rope_tables[rotary] = self._make_table(hop, rotary)
        return BoundAttention(self._attention, rows, table, *rows.locate(kv_layer))

    def _rows(self, hop: Hop) -> AttentionRows:
        return AttentionRows(hop.plan.carried, gather(hop, self._caches))

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
