"""Real hops of wanted sizes: sequences on real pages, driven through the spans by the executor."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import numpy as np
import torch

from blockllm.core import Request, Sampling
from blockllm.engine.batch.hops import HopCursor
from blockllm.engine.batch.turn import Grants, make_turn
from blockllm.engine.build import Parts
from blockllm.engine.costs.span import HopSize, size_of
from blockllm.engine.kv.cache import KVCache, SequenceKV
from blockllm.engine.run.rows import run_rows
from blockllm.engine.sequence.sequence import Sequence as EngineSequence
from blockllm.engine.work import full_work
from blockllm.errors import OutOfMemory
from blockllm.observability.timeline import Recorder

_SEED = 20260101  # of tokens, and of the sizes that check a fit


class Group(NamedTuple):
    """Sequences of one turn that compute equally many rows and then have as many tokens."""

    sequences: int
    rows: int  # each
    context: int  # tokens each, the rows included, virtual ones not


TurnShape = tuple[Group, ...]


class PoolLimits(NamedTuple):
    """What fits the page pool: so many sequences of so many tokens, and rows of one turn."""

    sequences: int
    context: int
    rows: int


class TimedHop(NamedTuple):
    """One hop of one turn."""

    span: int
    size: HopSize
    seconds: float


def grid(limits: PoolLimits) -> list[TurnShape]:
    """Turns to fit from: decoding, chunks of prompts early and late, and both together."""
    contexts = sorted({min(c, limits.context) for c in (16, 128, 512)})
    counts = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= limits.sequences]
    shapes: list[TurnShape] = [
        (Group(count, 1, context),) for count, context in product(counts, contexts)
    ]
    for rows in (r for r in (8, 32, 64, 128, 256, 512) if r <= min(limits.rows, limits.context)):
        shapes += [(Group(1, rows, context),) for context in sorted({rows, limits.context})]
        if limits.sequences >= 4 and 3 + rows <= limits.rows:
            shapes.append((Group(3, 1, contexts[-1]), Group(1, rows, rows)))
    return shapes


def held_out(limits: PoolLimits, count: int) -> list[TurnShape]:
    """Turns to check a fit with: sizes drawn evenly on a logarithmic scale, always the same."""
    chosen = np.random.default_rng(_SEED)

    def draw(most: int) -> int:
        return round(float(np.exp(chosen.uniform(0, np.log(max(most, 1))))))

    shapes: list[TurnShape] = []
    for index in range(count):
        context = draw(limits.context)
        decoding = Group(draw(limits.sequences), 1, context)
        rows = draw(min(limits.rows, limits.context))
        chunk = Group(1, rows, min(limits.context, rows + draw(limits.context)))
        mixed = index % 3 == 2 and 1 < decoding.sequences < limits.rows - rows + 1
        fewer = Group(decoding.sequences - 1, 1, context)
        shapes.append((fewer, chunk) if mixed else ((decoding,), (chunk,))[index % 2])
    return shapes


class HopDriver:
    """Runs turns of any size and times every hop. Holds pages of all KV pools until closed."""

    def __init__(self, parts: Parts, wanted: PoolLimits) -> None:
        """Raises OutOfMemory if a pool has no room for one sequence."""
        self._parts = parts
        self._cursor = HopCursor(list(parts.states.values()))
        self._kv: list[list[SequenceKV]] = []
        self._limits: list[PoolLimits] = []
        for index, cache in enumerate(parts.caches):
            kv, limits = self._open(index, cache, wanted)
            self._kv.append(kv)
            self._limits.append(limits)

    def _open(
        self, index: int, cache: KVCache, wanted: PoolLimits
    ) -> tuple[list[SequenceKV], PoolLimits]:
        """Pages for as many sequences as fit, filled: untouched memory would read too fast."""
        states = [state for state in self._parts.states.values() if state.kv_class == index]
        widest = max(states, key=lambda state: state.kv.total_bundles)
        context = min(wanted.context, *(state.max_context - 1 for state in states))
        # contexts count what users send: a model's virtual tokens stand before them
        held = context + max(state.virtual.num_tokens for state in states)
        need = cache.missing(widest.kv, [0] * len(widest.kv.num_bundles), held)
        count = min(wanted.sequences, cache.pool.num_available // max(need, 1))
        if not count or context < 1:
            raise OutOfMemory("the page pool has no room for a sequence; raise --memory")
        opened = []
        for _ in range(count):
            sequence = EngineSequence(Request("profile", "", (0,)), widest, cache.page_size)
            kv = cache.open(widest.kv, sequence.hashes, [[] for _ in widest.kv.num_bundles])
            cache.grow(kv, held)
            for group in (group for groups in kv.groups for group in groups):
                cache.tensor[torch.from_numpy(group.pages).long()] = 0.5
            opened.append(kv)
        return opened, PoolLimits(count, context, wanted.rows)

    def limits(self, model: str) -> PoolLimits:
        """What a turn of this model can be made of."""
        return self._limits[self._parts.states[model].kv_class]

    def close(self) -> None:
        """Give all pages back."""
        for cache, opened in zip(self._parts.caches, self._kv, strict=True):
            for kv in opened:
                cache.close(kv)

    def make(self, model: str, shape: TurnShape) -> Grants:
        """Sequences with the rows that each will compute; good for any number of runs."""
        state = self._parts.states[model]
        cache, slots = self._parts.caches[state.kv_class], iter(self._kv[state.kv_class])
        chosen = np.random.default_rng(_SEED)
        grants: Grants = []
        for group in shape:
            for _ in range(group.sequences):
                tokens = chosen.integers(0, state.route.chain.vocab_size, group.context).tolist()
                given = tokens[:-1] if group.rows == 1 < group.context else tokens
                request = Request("profile", model, tuple(given), Sampling(max_tokens=1))
                sequence = EngineSequence(request, state, cache.page_size)
                for token in tokens[len(given) :]:  # decoding computes what was generated
                    sequence.append(token)
                sequence.restart(sequence.num_total - group.rows)
                sequence.kv = next(slots)
                grants.append((sequence, full_work(sequence, group.rows)))
        return grants

    @torch.inference_mode()
    def run(self, grants: Grants) -> Iterator[TimedHop]:
        """One turn; every hop of it, timed until the device is done."""
        recorder = Recorder(self._settle)
        for hop, _ in run_rows(
            self._parts.executor, self._cursor, make_turn(grants).batch, recorder
        ):
            compute = next(part for part in reversed(recorder.parts) if part.name == "compute")
            yield TimedHop(hop.plan.span, size_of(hop), compute.duration / 1e9)

    def _settle(self) -> None:
        if self._parts.caches[0].tensor.device.type == "cuda":
            torch.cuda.synchronize()
