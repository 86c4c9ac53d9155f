"""Segmented LoRA equals adding each adapter to its own rows, whatever the ranks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")

from blockllm.engine.kernels.adapter_pool import (
    LoraPool,
    Update,
    make_pool,
    make_tiles,
    segmented_lora_plain,
    tile_rows,
)
from blockllm.engine.kernels.triton.lora import segmented_lora

SIZE = 40
COLUMNS = {"q": slice(0, 32), "k": slice(32, 40), "v": slice(40, 57)}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 2e-1}


def make_adapter(ranks: dict[str, int], bias: bool, **kind: Any) -> dict[str, Update]:
    generator = torch.Generator().manual_seed(sum(ranks.values()))

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(**kind)

    return {
        name: Update(
            a=draw(rank, SIZE) / 8,
            b=draw(rank, COLUMNS[name].stop - COLUMNS[name].start),
            scale=16 / rank,
            bias=draw(COLUMNS[name].stop - COLUMNS[name].start) if bias else None,
        )
        for name, rank in ranks.items()
    }


def check(pool: LoraPool, segments: list[tuple[int, int, int]], x: torch.Tensor) -> None:
    """Kernel against twin; rows in no segment stay as they are."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(len(x), 57, generator=generator).to(x)
    expected = y.clone()
    block = tile_rows(len(x))
    host = make_tiles(segments, block)
    padding = torch.zeros(2, 3, dtype=torch.int32)  # empty tiles, as a captured launch has
    tiles = torch.cat([torch.from_numpy(host), padding]).to(x.device)
    segmented_lora_plain(expected, x, tiles, pool)
    untouched = torch.ones(len(x), dtype=torch.bool)
    for start, stop, _ in segments:
        untouched[start:stop] = False
    before = y.clone()
    segmented_lora(y, x, tiles, block, pool)
    torch.testing.assert_close(y, expected, rtol=2e-6, atol=TOLERANCE[x.dtype])
    assert torch.equal(y[untouched], before[untouched])


@settings(max_examples=20, deadline=None)
@given(
    ranks=st.lists(
        st.dictionaries(st.sampled_from(list(COLUMNS)), st.sampled_from([1, 4, 8, 24, 32]),
                        min_size=1), min_size=1, max_size=3,
    ),
    counts=st.lists(st.tuples(st.integers(1, 20), st.integers(-1, 2)), min_size=1, max_size=5),
    bias=st.booleans(),
)  # fmt: skip
def test_mixed_ranks_and_segments(
    ranks: list[dict[str, int]], counts: list[tuple[int, int]], bias: bool
) -> None:
    kind = {"device": DEVICE, "dtype": torch.float32}
    pool = make_pool([make_adapter(r, bias, **kind) for r in ranks], COLUMNS)
    assert pool is not None
    segments, start = [], 0
    for rows, adapter in counts:  # -1: a model without an adapter
        if adapter >= 0:
            segments.append((start, start + rows, adapter % len(ranks)))
        start += rows
    check(pool, segments, torch.randn(start, SIZE, **kind))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        pytest.skip("the interpreter cannot multiply bfloat16 matrices")
    kind = {"device": DEVICE, "dtype": dtype}
    adapters = [
        make_adapter({"q": 8, "v": 24}, True, **kind),
        make_adapter({"k": 4}, False, **kind),
    ]
    pool = make_pool(adapters, COLUMNS)
    assert pool is not None
    x = torch.randn(22, SIZE).to(**kind)
    check(pool, [(0, 1, 1), (3, 22, 0)], x)


def test_long_rows_are_split_and_summed_in_order() -> None:
    """More columns than one program reads, more ranks than one block holds, 64-row tiles."""
    generator = torch.Generator().manual_seed(0)
    size, rank = 1100, 70
    update = Update(
        a=torch.randn(rank, size, generator=generator).to(DEVICE) / 50,
        b=torch.randn(rank, 57, generator=generator).to(DEVICE),
        scale=0.5,
        bias=None,
    )
    pool = make_pool([{}, {"all": update}], {"all": slice(0, 57)})
    assert pool is not None
    check(pool, [(2, 270, 1)], torch.randn(272, size, generator=generator).to(DEVICE))


def test_no_adapter_makes_no_pool_and_no_tiles() -> None:
    assert make_pool([{}, {}], COLUMNS) is None
    assert make_tiles([], 16).shape == (0, 3)
    assert make_tiles([(0, 17, 2)], 16).tolist() == [[0, 16, 2], [16, 17, 2]]
