"""Runs hops: owns the weights of all blocks and deltas, and the KV tensors' use."""

from __future__ import annotations

import torch

from blockllm.chain import Span, SpanPlan
from blockllm.core import (
    Block,
    Delta,
    EmbedFunction,
    HeadFunction,
    Layer,
    LayerFunction,
    LoraTarget,
)
from blockllm.engine.attention import Attention, AttentionRows
from blockllm.engine.batch import Hop, Segment
from blockllm.engine.kernels.fused import rms_norm
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.models.decoder import Attend, DecoderLayer
from blockllm.engine.models.linear import Embedding, Linear, Loader
from blockllm.engine.models.rope import RopeTable, RotaryEmbedding


class EmbedLayer:
    """Token ids → hidden states."""

    def __init__(self, layer: Layer, load: Loader) -> None:
        self.embedding = Embedding(load.load(layer.tensors["weight"]))

    def add_delta(self, delta: str, targets: dict[str, LoraTarget], load: Loader) -> None:
        """Attach a model's update of the table."""
        self.embedding.add_delta(delta, targets["embed"], load)


class HeadLayer:
    """Final norm and projection → logits, for rows whose next token is wanted."""

    def __init__(self, layer: Layer, load: Loader) -> None:
        assert isinstance(layer.function, HeadFunction)
        self.norm = load.load(layer.tensors["norm.weight"])
        self.eps = layer.function.norm_eps
        names = {"weight": "head.weight", "bias": "head.bias"}
        tensors = {names[n]: t for n, t in layer.tensors.items() if n in names}
        self.projection = Linear(("head",), tensors, load)

    def add_delta(self, delta: str, targets: dict[str, LoraTarget], load: Loader) -> None:
        """Attach a model's update of the projection."""
        self.projection.add_delta(delta, targets, load)


AnyLayer = EmbedLayer | DecoderLayer | HeadLayer


def bind_layer(layer: Layer, load: Loader) -> AnyLayer:
    """Give a layer's function its weights."""
    if isinstance(layer.function, EmbedFunction):
        return EmbedLayer(layer, load)
    if isinstance(layer.function, HeadFunction):
        return HeadLayer(layer, load)
    return DecoderLayer(layer, load)


class BlockExecutor:
    """One block with its weights."""

    def __init__(self, block: Block, load: Loader) -> None:
        self.layers = [bind_layer(layer, load) for layer in block.layers]
        self._deltas: set[str] = set()

    def add_delta(self, delta: Delta, load: Loader) -> None:
        """Attach a model's low-rank updates; rows of its segments use them from now on."""
        if delta.id in self._deltas:
            return
        self._deltas.add(delta.id)
        by_layer: dict[int, dict[str, LoraTarget]] = {}
        for key, target in delta.targets.items():
            index, _, module = key.partition(".")
            by_layer.setdefault(int(index), {})[module] = target
        for position, targets in by_layer.items():
            self.layers[position].add_delta(delta.id, targets, load)


class Executor:
    """Applies spans to batches of rows. Stateless between hops but for weights and KV."""

    def __init__(
        self,
        plan: SpanPlan,
        load: Loader,
        caches: list[KVCache],
        attention: Attention,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._caches, self._attention = caches, attention
        self._dtype, self._device = dtype, device
        self._ropes: dict[object, RotaryEmbedding] = {}
        self._blocks = {b.id: BlockExecutor(b, load) for span in plan.spans for b in span.blocks}
        for route in plan.routes.values():
            for entry in route.chain.entries:
                if entry.delta is not None:
                    self._blocks[entry.block.id].add_delta(entry.delta, load)

    @torch.inference_mode()
    def run(self, hop: Hop, span: Span) -> torch.Tensor:
        """Hidden states of the hop's rows [rows, hidden]; behind a head, logits of the members
        that want them [members, vocab]."""
        x = hop.hidden
        state = hop.turn.sequences[hop.members[0]].state
        stop = state.stops[hop.turn.stops[hop.members[0]]].stop
        kv_layer, cache = stop.first_kv_layer, self._caches[state.kv_class]
        for block, segments in zip(span.blocks, hop.segments, strict=True):
            executor = self._blocks[block.id]
            attend = self._bind_pages(hop, block, kv_layer, cache)
            for layer in executor.layers:
                if isinstance(layer, EmbedLayer):
                    x = layer.embedding(self._tokens(hop), segments)
                elif isinstance(layer, HeadLayer):
                    assert x is not None
                    x = self._head(layer, x, hop, segments)
                else:
                    assert x is not None
                    x = layer(x, self._rope_table(hop, layer.function), segments, attend)
                    kv_layer += 1
        assert x is not None
        return x

    def _tokens(self, hop: Hop) -> torch.Tensor:
        return torch.from_numpy(hop.turn.tokens[hop.rows]).to(self._device)

    def _bind_pages(self, hop: Hop, block: Block, kv_layer: int, cache: KVCache) -> Attend:
        """An attention function that knows this block's pages and counts its layers."""
        num_layers = sum(isinstance(layer.function, LayerFunction) for layer in block.layers)
        if not num_layers:
            return _no_attention
        per_page = cache.layers_per_page
        first = kv_layer // per_page
        rows = AttentionRows(hop, cache, first, num_layers // per_page)
        done = 0

        def attend(fused: torch.Tensor, table: RopeTable, window: int | None) -> torch.Tensor:
            nonlocal done
            bundle, within = divmod(done, per_page)
            done += 1
            kv = cache.tensor[:, within]  # [pages, 2, page_size, kv_heads, head_dim]
            rows.place(fused, table, kv, bundle)
            kv_heads = kv.shape[3]
            q, kv_new = fused[:, : -2 * kv_heads], fused[:, -2 * kv_heads :]
            k, v = kv_new.chunk(2, dim=1)
            return self._attention.attend(q, k, v, kv, bundle, rows, window)

        return attend

    def _rope_table(self, hop: Hop, function: LayerFunction) -> RopeTable:
        key = (function.rope, function.head_dim)
        table = hop.turn.rope_tables.get(key)
        if table is None:
            rope = self._ropes.get(key)
            if rope is None:
                rope = RotaryEmbedding(*key, self._device, self._dtype)
                self._ropes[key] = rope
            table = rope.table(
                torch.from_numpy(hop.turn.positions).to(self._device),
                torch.from_numpy(hop.turn.rope_lengths).to(self._device),
            )
            hop.turn.rope_tables[key] = table
        if hop.is_whole_turn:
            return table
        rows = torch.from_numpy(hop.rows).to(self._device)
        return RopeTable(table.cos[rows], table.sin[rows])

    def _head(
        self, layer: HeadLayer, x: torch.Tensor, hop: Hop, segments: tuple[Segment, ...]
    ) -> torch.Tensor:
        wanted = hop.turn.wants_logits[hop.members]  # [k]
        last = hop.starts[1:][wanted] - 1  # [wanted] row of each member's last token
        x = x[torch.from_numpy(last).to(self._device)]
        # segments count rows; behind this selection a row is a member
        moved = [
            Segment(int((last < s.start).sum()), int((last < s.stop).sum()), s.delta)
            for s in segments
        ]
        return layer.projection(rms_norm(x, layer.norm, layer.eps), moved)


def _no_attention(fused: torch.Tensor, table: RopeTable, window: int | None) -> torch.Tensor:
    raise AssertionError("a block without decoder layers has no attention")
