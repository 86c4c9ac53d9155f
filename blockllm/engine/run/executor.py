"""Runs hops: owns the weights of all blocks and deltas, and the KV tensors' use."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from weakref import WeakKeyDictionary

import torch

from blockllm.chain import SpanPlan
from blockllm.core import Delta, Rope
from blockllm.engine.attention import Attention
from blockllm.engine.attention.bound import BoundAttention
from blockllm.engine.attention.rope import RotaryEmbedding
from blockllm.engine.batch.arrays import Batch, Hop
from blockllm.engine.device.transfer import upload
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.layers.block import BlockDelta, BlockExecutor, SpanProgram
from blockllm.engine.layers.ops import Write
from blockllm.engine.layers.segments import OutputRows
from blockllm.engine.run.inputs import BatchInputs, EagerInputs, HopInputs
from blockllm.engine.weights.tensors import TableLoader
from blockllm.observability.timeline import OFF, Timeline

_PROGRAMS = 1024  # of neighbouring spans, that are remembered


class Executor:
    """Applies spans to batches of rows. Stateless between hops but for weights and KV."""

    joins_spans = True  # whether a hop may go through several

    def __init__(
        self,
        plan: SpanPlan,
        load: TableLoader,
        caches: list[KVCache],
        attention: Attention,
        dtype: torch.dtype,
        device: torch.device,
        kernels: Kernels,
    ) -> None:
        """`kernels`: what computes, unless `run` is told another number of threads."""
        self._caches, self._attention = caches, attention
        self._dtype, self._device, self._kernels = dtype, device, kernels
        known = {b.id: BlockExecutor(b, load) for span in plan.spans for b in span.blocks}
        self._spans = [tuple(known[block.id] for block in span.blocks) for span in plan.spans]
        # bound to the spans alone: a cycle would keep the weights until the next collection
        make = functools.partial(_make_program, self._spans)
        self._program = functools.lru_cache(_PROGRAMS)(make)
        self._rotaries = _make_rotaries(known.values(), device, dtype)
        self._batches: WeakKeyDictionary[Batch, BatchInputs] = WeakKeyDictionary()
        for block, added in _deltas(plan).items():
            known[block].attach(added, load)

    def run(self, hop: Hop, timeline: Timeline = OFF, threads: int = 0) -> torch.Tensor:
        """Hidden states of the hop's rows [rows, hidden]; behind a head, logits of the members
        that want them [members, vocab]. All hops of a batch are computed on as many threads. To be
        called in torch's inference mode."""
        return self.compute(hop, self.inputs(hop, threads), timeline)

    def inputs(self, hop: Hop, threads: int = 0) -> EagerInputs:
        """What the hop's rows bring; hops of a batch share what they have in common."""
        common = self._batches.get(hop.batch)
        if common is None:
            kernels = self._kernels._replace(threads=threads or self._kernels.threads)
            common = BatchInputs(self._caches, self._dtype, kernels)
            self._batches[hop.batch] = common
        return EagerInputs(hop, common, self._device)

    def blocks(self, span: int) -> tuple[BlockExecutor, ...]:
        """The blocks of a span with their weights."""
        return self._spans[span]

    def compute(self, hop: Hop, inputs: HopInputs, timeline: Timeline = OFF) -> torch.Tensor:
        """What `run` gives, of these inputs.

        Behind the last attention of their models only rows whose next token is wanted are
        computed; hidden states of the others are zero.
        """
        program = self._program(hop.plan.spans, any(hop.segments))
        x, kv_layer = inputs.hidden, hop.plan.first_kv_layer
        end = kv_layer + program.num_kv_layers
        bind = functools.partial(self._bind, inputs, timeline)
        output = self._output_rows(hop)
        dropped = False  # whether all but the output rows have been
        for section in program.sections:
            segments = inputs.segments(section.block, program.blocks[section.block])
            if output is not None and dropped:
                segments = segments.select(output.host)
            if x is None:
                x = inputs.tokens()
            first, kv_layer = kv_layer, kv_layer + section.num_kv_layers
            drops = output is not None and not dropped and kv_layer == end
            x = section(x, segments, bind, first, output if drops else None)
            dropped = dropped or drops
        assert x is not None
        if output is None or program.gives_logits:
            return x
        restored = x.new_zeros(len(hop.rows), x.shape[1])
        restored[output.rows] = x
        return restored

    def _output_rows(self, hop: Hop) -> OutputRows | None:
        """Rows that go on behind the hop's last attention; None: all."""
        host = hop.wanted if hop.plan.ends_attention else None
        return None if host is None else OutputRows(host, *upload([host], self._device))

    def _bind(
        self, inputs: HopInputs, timeline: Timeline, write: Write, kv_layer: int
    ) -> BoundAttention:
        """A layer's attention, bound to the rows' rotations and pages."""
        rows, table = inputs.attention(self._rotaries[write], timeline)
        return BoundAttention(self._attention, rows, table, *rows.locate(kv_layer))


def _make_program(
    known: Sequence[tuple[BlockExecutor, ...]], spans: tuple[int, ...], has_segments: bool
) -> SpanProgram:
    return SpanProgram([block for span in spans for block in known[span]], has_segments)


def _make_rotaries(
    blocks: Iterable[BlockExecutor], device: torch.device, dtype: torch.dtype
) -> dict[Write, RotaryEmbedding]:
    """Of every op that rotates; those that rotate alike share one."""
    known: dict[tuple[Rope, int], RotaryEmbedding] = {}
    of_op = {}
    for op in (layer.write for block in blocks for layer in block.layers):
        if op is not None:
            key = (op.rope, op.dim)
            if key not in known:
                known[key] = RotaryEmbedding(*key, device, dtype)
            of_op[op] = known[key]
    return of_op


def _deltas(plan: SpanPlan) -> dict[str, list[BlockDelta]]:
    """By block, every delta once."""
    found: dict[str, dict[str, tuple[Delta, set[str]]]] = {}  # by block, by delta
    for model, route in plan.routes.items():
        for entry in route.chain.entries:
            if entry.delta is not None:
                of_block = found.setdefault(entry.block.id, {})
                of_block.setdefault(entry.delta.id, (entry.delta, set()))[1].add(model)
    return {
        block: [BlockDelta(delta, frozenset(models)) for delta, models in own.values()]
        for block, own in found.items()
    }
