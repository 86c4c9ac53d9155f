"""Attention through the kernels equals the plain twin, and reads no slot it must not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from blockllm.engine.attention import make_attention
from blockllm.engine.kernels.triton import decode
from blockllm.engine.kv.cache import KVCache, KVShape
from tests.engine.test_attention import BUNDLES, attend_parts, make_parts, make_rows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAGE, WIDTH = 16, 5


def check(
    spans: list[tuple[int, int]],
    heads: tuple[int, int],
    dim: int,
    window: int | None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Sequences with (tokens before, new rows); unused slots hold NaN."""
    size = (len(spans), BUNDLES, WIDTH)
    cache = KVCache(KVShape(heads[1], dim), 2, PAGE, int(np.prod(size)), size, DEVICE, dtype)
    cache.tensor.fill_(float("nan"))
    rows = make_rows(spans, cache)
    kv, bundle = cache.tensor[:, 1], 1
    generator = torch.Generator().manual_seed(dim)
    for i, (first, _) in enumerate(spans):  # what earlier turns wrote
        table = cache.tables[i, bundle]
        for token in range(first):
            pair = torch.randn(2, heads[1], dim, generator=generator)
            kv[table[token // PAGE], :, :, token % PAGE] = pair.to(DEVICE, dtype)
    fused = torch.randn(int(rows.starts[-1]), heads[0] + 2 * heads[1], dim, generator=generator)
    fused = fused.to(DEVICE, dtype)
    q, k, v = fused.split([heads[0], heads[1], heads[1]], dim=1)
    rows.write(kv, bundle, k, v)
    expected = make_attention("plain").attend(q, k, v, kv, bundle, rows, window)
    assert torch.isfinite(expected).all()
    parts = make_parts(spans, cache, len(spans) // 2)
    got = attend_parts("triton", parts, (q, k, v), kv, bundle, window)
    tolerance = 2e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)


@pytest.mark.usefixtures("kernels_on")
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), min_size=1, max_size=4),
    st.sampled_from([(1, 1), (2, 1), (6, 2), (7, 1), (3, 3)]),
    st.sampled_from([None, 1, 3, 17, 400]),
)
def test_mixed_batches(
    spans: list[tuple[int, int]], heads: tuple[int, int], window: int | None
) -> None:
    check(spans, heads, 16, window)


@pytest.mark.usefixtures("kernels_on")
@pytest.mark.parametrize("dim", [24, 64, 80, 256])
@pytest.mark.parametrize("window", [None, 5])
def test_head_sizes(dim: int, window: int | None) -> None:
    check([(33, 1), (15, 1), (30, 40), (0, 17)], (4, 2), dim, window)


@pytest.mark.usefixtures("kernels_on")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("the interpreter cannot multiply bfloat16 matrices")
    check([(70, 1), (0, 1), (30, 40)], (4, 2), 64, None, dtype)


@pytest.mark.usefixtures("kernels_on")
@pytest.mark.parametrize("splits", [1, 2, 8])
def test_contexts_are_split_and_joined(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    """8 parts are more than there are blocks of tokens: some parts are empty."""
    monkeypatch.setattr(decode, "num_splits", lambda *sizes: splits)
    check([(79, 1), (64, 1), (0, 1)], (6, 2), 16, None)
    check([(79, 1), (0, 1)], (6, 2), 16, 37)


def test_number_of_parts() -> None:
    assert decode.num_splits(1, 8, 1 << 17, 64) == 32
    assert decode.num_splits(64, 8, 1 << 17, 64) == 1
    assert decode.num_splits(1, 1, 100, 64) == 1
    assert decode.num_splits(8, 8, 4096, 64) == 8
