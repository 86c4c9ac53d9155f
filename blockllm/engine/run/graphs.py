"""CUDA graphs: a hop of single rows is replayed as one launch instead of hundreds.

A graph is captured per span, KV position and *bucket* of rows, the first time such a hop comes.
It reads only static device memory: hidden states and one run of bytes with all index arrays,
which every replay fills in a single copy from pinned memory; tokens that only the device knows are
put in behind it. Rows beyond the hop's own compute on the spare page 0; what they compute is not
read. Everything else runs eagerly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from blockllm.chain import Span, SpanPlan
from blockllm.chain.spans import num_kv_layers
from blockllm.core import LayerFunction
from blockllm.engine.attention.rope import RopeTable, RotaryEmbedding
from blockllm.engine.attention.rows import (
    AttentionRows,
    GatheredRows,
    RowArrays,
    RowTensors,
    cut_rows,
)
from blockllm.engine.batch.arrays import Hop, fill_tokens
from blockllm.engine.device.transfer import pack, unpack
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.layers.block import BlockExecutor
from blockllm.engine.layers.segments import Segments
from blockllm.engine.run.executor import Executor
from blockllm.engine.run.inputs import EagerInputs
from blockllm.observability.timeline import OFF, Timeline

LOG = logging.getLogger(__name__)

Compute = Callable[[], torch.Tensor]
Capture = Callable[[Compute], Compute]  # what it returns computes the same again, on new inputs

_STEP = 8  # rows between buckets, from 8 rows on
_LEAST_WIDTH = 64  # page indices per sequence; wider tables come in powers of four of it


class Shape(NamedTuple):
    """Hops that one graph serves."""

    span: int
    kv_class: int
    first_kv_layer: int
    rows: int
    width: int  # page indices per sequence


def bucket_of(rows: int, most: int) -> int:
    """Rows to run with: 1, 2, 4, 8, 16, 24, ... but never more than `most`."""
    if rows <= _STEP:
        return min(1 << (rows - 1).bit_length(), most)
    return min(-(-rows // _STEP) * _STEP, most)


def width_of(pages: int, most: int) -> int:
    """Page indices per sequence to run with: 64, 256, 1024, ... but never more than `most`."""
    width = _LEAST_WIDTH
    while width < pages:
        width *= 4
    return min(width, most)


def pad_rows(arrays: RowArrays, rows: int, width: int) -> RowArrays:
    """Index arrays of single rows, filled up to the bucket: the rows added are sequences of one
    token on the spare page."""
    tables = arrays.tables[:, :, :width]  # longer sequences may have been gathered at once
    more, wider = rows - len(tables), width - tables.shape[2]
    every = np.arange(rows, dtype=np.int32)
    return RowArrays(
        tables=np.pad(tables, ((0, more), (0, 0), (0, wider))),
        write_pages=np.pad(arrays.write_pages, ((0, 0), (0, more))),
        write_offsets=np.pad(arrays.write_offsets, (0, more)),
        visible=np.pad(arrays.visible, (0, more), constant_values=1),
        singles=np.stack([every, every], 1),
    )


def cut_bundles(arrays: RowArrays, first: int, count: int) -> RowArrays:
    """The part of index arrays that layers in `count` bundles from `first` on read."""
    bundles = slice(first, first + count)
    return arrays._replace(
        tables=arrays.tables[:, bundles], write_pages=arrays.write_pages[bundles]
    )


class StaticHop:
    """Device memory that one graph reads: filled before each replay, never moved."""

    def __init__(self, hidden: torch.Tensor | None, rows: int, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self.hidden = None if hidden is None else hidden.new_zeros(rows, hidden.shape[1])
        self._packed: torch.Tensor | None = None
        self.tokens = self.positions = self.rope_lengths = torch.empty(0)
        self.tensors: RowTensors | None = None
        self.tiles: list[torch.Tensor] = []  # by block of the span, [rows, 3]

    def fill(self, hop: Hop, rows: RowArrays | None, tiles: Sequence[np.ndarray]) -> None:
        """Take over a hop's hidden states and index arrays (`rows` padded, None where no layer
        keeps keys and values; `tiles` of each block)."""
        if self.hidden is not None:
            assert hop.hidden is not None
            self.hidden[: len(hop.hidden)].copy_(hop.hidden)
        batch, more = hop.batch, (0, self._rows - len(hop.rows))
        of_rows = (batch.tokens, batch.positions, batch.rope_lengths)
        arrays: list[np.ndarray] = [np.pad(array[hop.rows], more) for array in of_rows]
        arrays += rows or ()
        # a tile has at least one row, so there are never more tiles than rows
        arrays += [np.pad(t, ((0, self._rows - len(t)), (0, 0))) for t in tiles]
        host = pack(arrays)
        if self._packed is None:
            self._packed = torch.zeros(len(host), dtype=torch.uint8, device=self._device)
            self._bind(unpack(self._packed, arrays), len(tiles))
        if self._device.type == "cuda":
            host = host.pin_memory()  # from torch's cache, reused only after the copy is done
        self._packed.copy_(host, non_blocking=True)
        if hop.hidden is None:  # the hop begins with an embedding
            fill_tokens(self.tokens, hop)

    def _bind(self, views: Sequence[torch.Tensor], num_blocks: int) -> None:
        self.tokens, self.positions, self.rope_lengths = views[:3]
        end = len(views) - num_blocks
        self.tensors = RowTensors(*views[3:end]) if end > 3 else None
        self.tiles = list(views[end:])

    def attention_rows(self, hop: Hop, gathered: GatheredRows) -> AttentionRows:
        """The hop's rows, on the static tensors."""
        first_bundle = hop.plan.first_kv_layer // gathered.cache.layers_per_page
        return AttentionRows(hop.plan.carried, gathered, self.tensors, first_bundle)


class Graphs:
    """All captured hops of one executor."""

    def __init__(self, capture: Capture, caches: list[KVCache], max_sequences: int) -> None:
        self._capture, self._caches, self._most = capture, caches, max_sequences
        self._known: dict[Shape, tuple[StaticHop, Compute] | None] = {}  # None: cannot be captured

    def run(
        self,
        hop: Hop,
        inputs: EagerInputs,
        span: Span,
        segments: Sequence[Segments],
        compute: Callable[[StaticHop], torch.Tensor],
    ) -> torch.Tensor | None:
        """What `compute` gives for the hop, or None if it has to be run eagerly."""
        if not _is_capturable(hop, span):
            return None
        shape = self._shape(hop)
        cache = self._caches[shape.kv_class]
        rows = self._row_arrays(hop, inputs, span, shape)
        tiles = [each.host_tiles() for each in segments]
        if shape not in self._known:
            static = StaticHop(hop.hidden, shape.rows, cache.tensor.device)
            static.fill(hop, rows, tiles)  # warming up computes on it
            self._known[shape] = self._make(shape, static, compute)
        known = self._known[shape]
        if known is None:
            return None
        static, replay = known
        static.fill(hop, rows, tiles)
        # a copy: other graphs share the memory that this one computes in
        return replay()[: len(hop.rows)].clone()

    def _shape(self, hop: Hop) -> Shape:
        kv_class = int(hop.batch.pools[hop.members[0]])
        cache = self._caches[kv_class]
        longest = int(hop.batch.firsts[hop.members].max()) + 1
        return Shape(
            span=hop.plan.span,
            kv_class=kv_class,
            first_kv_layer=hop.plan.first_kv_layer,
            rows=bucket_of(len(hop.rows), self._most),
            width=width_of(-(-longest // cache.page_size), cache.tables.shape[2]),
        )

    def _row_arrays(
        self, hop: Hop, inputs: EagerInputs, span: Span, shape: Shape
    ) -> RowArrays | None:
        """Of the bundles that the span's layers are in, padded; None if it keeps no KV."""
        layers = sum(map(num_kv_layers, span.blocks))
        if not layers:
            return None
        gathered = inputs.gathered()
        own, per_page = cut_rows(gathered.arrays, hop.plan.carried), gathered.cache.layers_per_page
        own = cut_bundles(own, shape.first_kv_layer // per_page, layers // per_page)
        return pad_rows(own, shape.rows, shape.width)

    def _make(
        self,
        shape: Shape,
        static: StaticHop,
        compute: Callable[[StaticHop], torch.Tensor],
    ) -> tuple[StaticHop, Compute] | None:
        try:
            return static, self._capture(lambda: compute(static))
        except RuntimeError as error:
            LOG.warning("no CUDA graph for %s, it runs eagerly: %s", shape, error)
            return None


def _is_capturable(hop: Hop, span: Span) -> bool:
    """Single rows that all go on to a next token (no virtual ones, then), and nothing that the
    host has to look at."""
    functions = (layer.function for block in span.blocks for layer in block.layers)
    ropes = [f.rope.kind for f in functions if isinstance(f, LayerFunction)]
    return (
        len(hop.rows) == len(hop.members)
        and bool(hop.batch.wants_logits[hop.members].all())
        and "dynamic" not in ropes
    )


class CudaCapture:
    """Captures into graphs that share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Compute) -> Compute:
        """Run twice to let kernels be compiled and workspaces be taken, then capture.
        Computing again changes nothing: the same keys and values go to the same slots."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            out = compute()

        def replay() -> torch.Tensor:
            graph.replay()
            return out

        return replay


class StaticInputs:
    """Inputs of a hop that is computed on static memory: see `HopInputs`."""

    def __init__(self, hop: Hop, eager: EagerInputs, static: StaticHop) -> None:
        self._hop, self._eager, self._static = hop, eager, static
        self.kernels = eager.kernels
        self._rows: AttentionRows | None = None
        self._tables: dict[RotaryEmbedding, RopeTable] = {}

    @property
    def hidden(self) -> torch.Tensor | None:
        return self._static.hidden

    def tokens(self) -> torch.Tensor:
        return self._static.tokens

    def segments(self, index: int, block: BlockExecutor) -> Segments:
        tiles = self._static.tiles[index]
        host = self._hop.segments[index]
        size, device = len(tiles), tiles.device
        return Segments(host, block.adapters, size, device, tiles, kernels=self.kernels)

    def attention(
        self, rotary: RotaryEmbedding, timeline: Timeline
    ) -> tuple[AttentionRows, RopeTable]:
        if self._rows is None:
            self._rows = self._static.attention_rows(self._hop, self._eager.gathered())
        if rotary not in self._tables:
            static = self._static
            self._tables[rotary] = rotary.table(static.positions, static.rope_lengths)
        return self._rows, self._tables[rotary]


class GraphExecutor:
    """Replays the hops of an executor that were captured. Gives what `Executor` gives.

    Hops go through one span each: replaying costs little, and every sequence of spans would need
    graphs of its own."""

    joins_spans = False

    def __init__(
        self,
        plan: SpanPlan,
        eager: Executor,
        caches: list[KVCache],
        capture: Capture,
        max_sequences: int,
    ) -> None:
        """The attention of `eager` must read nothing but the tensors of its rows (the Triton
        kernels do)."""
        self._plan, self._eager = plan, eager
        self._graphs = Graphs(capture, caches, max_sequences)

    def run(self, hop: Hop, timeline: Timeline = OFF, threads: int = 0) -> torch.Tensor:
        """See `Executor.run`."""
        (span,) = hop.plan.spans
        blocks = self._eager.blocks(span)
        if any(hop.segments) and any(block.loops_segments for block in blocks):
            # an embedding adds deltas segment by segment
            return self._eager.run(hop, timeline, threads)
        inputs = self._eager.inputs(hop, threads)
        segments = [inputs.segments(i, block) for i, block in enumerate(blocks)]

        def compute(static: StaticHop) -> torch.Tensor:
            return self._eager.compute(hop, StaticInputs(hop, inputs, static))

        out = self._graphs.run(hop, inputs, self._plan.spans[span], segments, compute)
        return self._eager.compute(hop, inputs, timeline) if out is None else out
