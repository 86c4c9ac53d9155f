"""Attention over pages as cases, for single rows and for prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

import numpy as np
import torch

from blockllm.bench.kernel_setup import Setup, tolerance
from blockllm.bench.kernels import Call, Case
from blockllm.engine.attention import Attention, AttentionRows, make_attention
from blockllm.engine.attention.rows import GatheredRows
from blockllm.engine.batch.arrays import Batch, RowSet
from blockllm.engine.kv.cache import KVCache, KVShape

_PAGE = 16


def attention_decode(s: Setup) -> Iterator[Case]:
    """One row per sequence over its pages."""
    for context in s.contexts:
        for rows in s.rows:
            if rows <= 32:  # more sequences of this length take gigabytes
                yield _attention(s, "attention_decode", rows, context - 1, 1)


def attention_prefill(s: Setup) -> Iterator[Case]:
    """A chunk of a prompt over the pages of what came before and its own."""
    for context in s.contexts:
        chunk = min(256, context)
        yield _attention(s, "attention_prefill", 1, 0, chunk)
        if context > chunk:
            yield _attention(s, "attention_prefill", 1, context - chunk, chunk)


def _attention(s: Setup, name: str, sequences: int, before: int, rows: int) -> Case:
    context = before + rows

    def make(seed: int) -> Call:
        cache, index = _paged(s, sequences, before, rows, seed)
        kv = cache.tensor[:, 0]
        q = s.random(seed + 1, sequences * rows, s.heads, s.head_dim)
        k, v = (s.random(seed + 2 + i, len(q), s.kv_heads, s.head_dim) for i in range(2))
        index.write(kv, 0, k, v)

        def run(backend: Attention) -> Callable[[], torch.Tensor]:
            return lambda: backend.attend(q, k, v, kv, 0, index, None)

        return Call(run(make_attention(_backend(s.device))), run(make_attention("plain")))

    per_token = s.kv_heads * s.head_dim * 2
    ends = (sequences * rows) * s.heads * s.head_dim * 2
    pairs = sequences * sum(range(before + 1, context + 1))
    size = f"{sequences} x {rows} rows, context {context}"
    moved = (sequences * context * per_token + ends) * s.width
    return Case(name, size, make, moved, 4 * pairs * s.heads * s.head_dim, tolerance(s, 64))


def _backend(device: torch.device) -> str:
    return "triton" if device.type == "cuda" else "native"


def _paged(
    s: Setup, sequences: int, before: int, rows: int, seed: int
) -> tuple[KVCache, AttentionRows]:
    """A cache of random contents in which every sequence has scattered pages of its own."""
    width = -(-(before + rows) // _PAGE)
    shape = KVShape(s.kv_heads, s.head_dim)
    pages = sequences * width
    cache = KVCache(shape, 1, _PAGE, pages, (sequences, 1, width), s.device, s.dtype)
    cache.tensor.copy_(s.random(seed, *cache.tensor.shape))
    order = np.random.default_rng(seed).permutation(pages) + 1
    cache.tables[:] = order.reshape(sequences, 1, width)
    each = np.arange(sequences)
    batch = SimpleNamespace(
        counts=np.full(sequences, rows, np.int64),
        firsts=np.full(sequences, before, np.int64),
        slots=each,
        has_given=True,
        given=np.full(sequences, before + (rows if rows > 1 else 0), np.int64),
        positions=np.tile(np.arange(before, before + rows), sequences),
    )
    starts, every = np.arange(sequences + 1) * rows, np.arange(sequences * rows)
    whole = RowSet(0, each, every, starts)
    return cache, AttentionRows(whole, GatheredRows(cast(Batch, batch), whole, cache, s.kernels))
