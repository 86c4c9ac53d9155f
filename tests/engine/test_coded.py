"""Compressed differences: the kernel equals its plain twin, and merged weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blockllm.engine.kernels.adapter_pool import make_tiles
from blockllm.engine.kernels.choice import ALL_CORES
from blockllm.engine.kernels.coded import (
    Coded,
    Difference,
    PackedDifferences,
    Sparse,
    add_plain,
    decode,
    densify,
    look_up,
    make_differences,
)
from blockllm.engine.kernels.cpu.build import native_library

needs_compiler = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_coded(seed: int, out: int, inputs: int, bits: int, groups: int = 1) -> Coded:
    generator = torch.Generator().manual_seed(seed)
    shape = (out, inputs * bits // 8)
    codes = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return Coded(codes, random(seed, out, groups), bits)


def random_sparse(seed: int, out: int, inputs: int, share: float = 0.1) -> Sparse:
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(out, inputs, generator=generator) < share
    columns = kept.nonzero()[:, 1].to(torch.int32)
    ends = kept.sum(1).cumsum(0).to(torch.int32)
    return Sparse(random(seed, len(columns)), columns, ends)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_codes_stand_for_what_core_says(bits: int) -> None:
    coded = random_coded(1, 3, 32, bits, groups=2)
    weight = decode(coded)
    for o in range(3):
        for i in range(32):
            bit = i * bits
            code = int(coded.codes[o, bit // 8]) >> bit % 8 & (2**bits - 1)
            expected = coded.scales[o, i // 16] * (code - (2**bits - 1) / 2)
            assert weight[o, i] == expected


def test_some_rows_are_rows_of_the_whole() -> None:
    rows = torch.tensor([5, 0, 5, 8])
    for difference in (random_coded(2, 9, 48, 2, groups=3), random_sparse(2, 9, 48)):
        assert torch.equal(look_up(difference, rows, 48), densify(difference, 48)[rows])


def test_sparse_elements_are_where_they_were() -> None:
    dense = random(3, 7, 11) * (random(4, 7, 11) > 0.8)
    dense[2] = 0
    kept = dense != 0
    ends = kept.sum(1).cumsum(0).to(torch.int32)
    sparse = Sparse(dense[kept], kept.nonzero()[:, 1].to(torch.int32), ends)
    assert torch.equal(densify(sparse, 11), dense)


COLUMNS = {"q": slice(0, 70), "k": slice(70, 102), "v": slice(102, 103)}


def some_models(inputs: int) -> list[dict[str, tuple[Difference, ...]]]:
    """Five models: different bits and parts, stacked ones, sparse ones, one that has none."""
    return [
        {"q": (random_coded(1, 70, inputs, 1),), "v": (random_coded(2, 1, inputs, 4),)},
        {"k": (random_coded(3, 32, inputs, 2, groups=inputs // 16), random_sparse(4, 32, inputs))},
        {},
        {"q": (random_sparse(5, 70, inputs), random_coded(6, 70, inputs, 4, groups=2))},
        {"q": (), "k": (random_coded(7, 32, inputs, 1, groups=inputs // 16),)},
    ]


def some_tiles(rows: int) -> torch.Tensor:
    sizes = [1, 13, 3, rows - 20, 2]
    starts = [0, 1, 14, 17, rows - 3]
    found = [
        (start, start + size, i) for i, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
    return torch.from_numpy(make_tiles(found, 64))


@needs_compiler
@pytest.mark.parametrize("rows", [21, 40, 200])
@pytest.mark.parametrize("inputs", [16, 48, 528])
def test_kernel_equals_twin_and_merged_weights(rows: int, inputs: int) -> None:
    models, tiles = some_models(inputs), some_tiles(rows)
    x, y = random(8, rows, inputs), random(9, rows, 103)
    plain, native, merged = y.clone(), y.clone(), y.clone()
    add_plain(plain, x, tiles, models, COLUMNS)
    PackedDifferences(models, COLUMNS).add_to(native, x, tiles, 64, ALL_CORES)
    for first, end, model in tiles.tolist():
        for name, group in models[model].items():
            weight = sum((densify(d, inputs) for d in group), torch.zeros(1))
            if group:
                merged[first:end, COLUMNS[name]] += F.linear(x[first:end], weight)
    torch.testing.assert_close(plain, merged, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(native, plain, rtol=1e-4, atol=2e-4)
    assert not torch.equal(native, y)
    assert torch.equal(native[14:17], y[14:17])  # the model that changes nothing


@needs_compiler
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    models = [
        {"q": (random_coded(1, 70, 528, 2, groups=2), random_sparse(2, 70, 528))},
        {"q": (random_coded(3, 70, 528, 4), random_coded(4, 70, 528, 1, groups=33))},
    ]
    run = PackedDifferences(models, {"q": slice(0, 70)}).add_to
    x = random(5, 60, 528)
    x[1::2] *= 50  # loud neighbours

    def result(x: torch.Tensor, model: int) -> torch.Tensor:
        y = torch.zeros(len(x), 70)
        run(y, x, torch.tensor([[0, len(x), model]], dtype=torch.int32), 64, ALL_CORES)
        return y

    for model in (0, 1):
        together = result(x, model)
        for rows in (1, 3, 14):
            alone = torch.cat([result(part, model) for part in x.split(rows)])
            assert torch.equal(alone, together)


@needs_compiler
def test_rows_outside_the_tiles_stay_as_they_are() -> None:
    run = make_differences([{"q": (random_coded(1, 70, 64, 4),)}], {"q": slice(0, 70)})
    assert run is not None
    y = torch.ones(5, 80)[:, :70]  # rows lie apart
    run(y, random(2, 5, 64), torch.tensor([[1, 3, 0]], dtype=torch.int32), 16, ALL_CORES)
    assert bool((y[[0, 3, 4]] == 1).all()) and not bool((y[1:3] == 1).any())


def test_no_difference_adds_nothing() -> None:
    assert make_differences([{}, {"q": ()}], {"q": slice(0, 4)}) is None
    assert make_differences([], {"q": slice(0, 4)}) is None


def test_other_dtypes_take_the_twin() -> None:
    coded = random_coded(1, 6, 16, 2)._replace(scales=random(1, 6, 1).bfloat16())
    run = make_differences([{"q": (coded,)}], {"q": slice(0, 6)})
    assert run is not None
    x, y = random(2, 3, 16).bfloat16(), torch.zeros(3, 6, dtype=torch.bfloat16)
    run(y, x, torch.tensor([[0, 3, 0]], dtype=torch.int32), 16, ALL_CORES)
    torch.testing.assert_close(y, F.linear(x, decode(coded)))
