"""Every attention backend equals the plain twin, and neither reads what it must not."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockllm.engine.attention import AttentionRows, make_attention
from blockllm.engine.attention.rows import GatheredRows
from blockllm.engine.batch.arrays import Batch, RowSet
from blockllm.engine.kv.cache import KVCache, KVShape

PAGE, BUNDLES = 4, 2


def make_rows(
    spans: list[tuple[int, int]], cache: KVCache, first: int = 0, end: int | None = None
) -> AttentionRows:
    """Sequences with (tokens before, new rows), each on pages of its own, in mixed order; of these
    a part, gathered with all others."""
    pages = np.random.default_rng(0).permutation(cache.pool.num_pages) + 1
    cache.tables[:] = pages[: cache.tables.size].reshape(cache.tables.shape)
    counts = np.array([rows for _, rows in spans], np.int64)
    firsts = np.array([first for first, _ in spans], np.int64)
    starts = np.concatenate([[0], np.cumsum(counts)])
    positions = np.concatenate([first + np.arange(rows) for first, rows in spans])
    batch = SimpleNamespace(
        counts=counts,
        firsts=firsts,
        has_given=True,
        given=firsts + counts * (np.arange(len(spans)) % 3) // 2,  # none of the rows, half, all
        slots=np.arange(len(spans)),
        positions=positions,
    )
    whole = RowSet(0, np.arange(len(spans)), np.arange(starts[-1]), starts)
    members = whole.members[first:end]
    bounds = starts[first : first + len(members) + 1]
    rows = whole.rows[bounds[0] : bounds[-1]]
    part = RowSet(1, members, rows, bounds - bounds[0], None, whole, first, int(bounds[0]))
    return AttentionRows(part, GatheredRows(cast(Batch, batch), whole, cache))


def make_parts(spans: list[tuple[int, int]], cache: KVCache, cut: int) -> list[AttentionRows]:
    """The same as two hops that were gathered at once, where `cut` lies between sequences."""
    edges = [0, cut, len(spans)] if 0 < cut < len(spans) else [0, len(spans)]
    return [make_rows(spans, cache, *edge) for edge in itertools.pairwise(edges)]


def attend_parts(
    name: str, parts: list[AttentionRows], qkv: tuple[torch.Tensor, ...], *where: Any
) -> torch.Tensor:
    """What a backend gives for each hop's rows of q, k, v. where: kv, bundle and window"""
    kv, bundle, window = where
    outs = []
    for part in parts:
        own = (x[part.part.within[1]] for x in qkv)
        outs.append(make_attention(name).attend(*own, kv, bundle, part, window))
    return torch.cat(outs)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 21), st.integers(1, 6)), min_size=1, max_size=5),
    st.sampled_from([None, 1, 3, 8, 40]),
    st.sampled_from([(1, 1), (2, 1), (6, 2), (7, 1), (3, 3)]),
    st.integers(0, 1),
    st.integers(0, 4),
    st.sampled_from([8, 64, 80]),
    st.sampled_from([0.2, 1.0, 5.0]),
)
def test_batched_backends_equal_plain(
    spans: list[tuple[int, int]],
    window: int | None,
    heads: tuple[int, int],
    bundle: int,
    cut: int,
    dim: int,
    sharpness: float,
) -> None:
    generator = torch.Generator().manual_seed(len(spans))
    device, width = torch.device("cpu"), 8
    size = (len(spans), BUNDLES, width)
    cache = KVCache(
        KVShape(heads[1], dim), 1, PAGE, len(spans) * BUNDLES * width, size, device, torch.float32
    )
    cache.tensor.fill_(float("nan"))  # whatever is read without having been written shows
    rows = make_rows(spans, cache)
    kv = cache.tensor[:, 0]
    for i, (first, _) in enumerate(spans):  # what earlier turns wrote
        table = cache.tables[i, bundle]
        for token in range(first):
            kv[table[token // PAGE], :, :, token % PAGE] = torch.randn(
                2, heads[1], dim, generator=generator
            )
    # sharp weights leave one token: a kernel that forgets a later page's best score errs a lot
    q = torch.randn(int(rows.starts[-1]), heads[0], dim, generator=generator) * sharpness
    k, v = torch.randn(2, len(q), heads[1], dim, generator=generator)
    parts = make_parts(spans, cache, cut)
    for part in parts:
        own = part.part.within[1]
        part.write(kv, bundle, k[own], v[own])
    expected = make_attention("plain").attend(q, k, v, kv, bundle, rows, window)
    assert torch.isfinite(expected).all()
    for name in ("plain", "gathered", "native"):
        got = attend_parts(name, parts, (q, k, v), kv, bundle, window)
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-6 * max(1.0, sharpness))


def test_shared_pages_are_not_written() -> None:
    device = torch.device("cpu")
    cache = KVCache(KVShape(1, 8), 1, PAGE, 16, (1, BUNDLES, 4), device, torch.float32)
    cache.adopted[0, 0] = PAGE  # the first page of the block has another owner too
    rows = make_rows([(0, 6)], cache)
    cache.tensor.zero_()
    k, v = torch.ones(2, 6, 1, 8)
    rows.write(cache.tensor[:, 0], 0, k, v)
    pages = cache.tables[0, 0]
    assert not cache.tensor[pages[0]].any()
    assert cache.tensor[pages[1], 0, :, :, :2].all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_backends_agree_on_cuda() -> None:
    device = torch.device("cuda")
    cache = KVCache(KVShape(2, 8), 1, PAGE, 64, (3, BUNDLES, 4), device, torch.float32)
    rows = make_rows([(0, 6), (0, 1), (0, 3)], cache)
    q, (k, v) = torch.randn(10, 4, 8, device=device), torch.randn(2, 10, 2, 8, device=device)
    rows.write(cache.tensor[:, 0], 0, k, v)
    plain, gathered = (
        make_attention(name).attend(q, k, v, cache.tensor[:, 0], 0, rows, None)
        for name in ("plain", "gathered")
    )
    torch.testing.assert_close(gathered, plain, rtol=0, atol=2e-5)
