"""Every kernel equals its plain twin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blockllm.engine.kernels import plain
from blockllm.engine.kernels.adapter_pool import (
    Update,
    make_pool,
    make_tiles,
    segmented_lora_plain,
)
from blockllm.engine.kernels.adapters import PackedAdapters
from blockllm.engine.kernels.choice import ALL_CORES
from blockllm.engine.kernels.cpu import native
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.engine.kernels.matmul import make_matmul, packs

needs_compiler = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")
CPU, F32 = torch.device("cpu"), torch.float32


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_int8(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)


@needs_compiler
@pytest.mark.parametrize("rows", [0, 1, 2, 12, 13, 33, 200])
@pytest.mark.parametrize("shape", [(1, 1), (48, 32), (97, 31), (7, 130), (64, 1300)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_matmul_equals_plain(rows: int, shape: tuple[int, int], bias: bool) -> None:
    first, second = random(rows, *shape), random(rows + 1, 5, shape[1])
    offset = random(3, shape[0] + 5) if bias else None
    x = random(99, rows, shape[1])
    assert packs(CPU, F32)
    got = make_matmul([first, second], offset, None, F32)(x)
    expected = F.linear(x.double(), torch.cat([first, second]).double())
    expected = (expected if offset is None else expected + offset).float()
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-4)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 2), (97, 30), (200, 1300)])
def test_weights_of_16_bits_give_the_bits_of_fp32(
    dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    weight = (random(5, *shape) / 50).to(dtype)
    # zeros of both signs, numbers below the least normal one, the largest
    weight[0, :2] = torch.tensor([0.0, -0.0])
    weight[1, :2] = torch.tensor([torch.finfo(dtype).smallest_normal / 8, -3e-7], dtype=dtype)
    weight[2, :2] = torch.tensor([torch.finfo(dtype).max / 64, torch.finfo(dtype).min / 64])
    narrow = make_matmul([weight[:50], weight[50:]], random(6, shape[0]), None, F32)
    wide = make_matmul([weight.float()], random(6, shape[0]), None, F32)
    for rows in (0, 1, 2, 11, 12, 13, 40, 47, 48, 130):
        x = random(rows, rows, shape[1])
        assert torch.equal(narrow(x), wide(x))
    units = torch.eye(shape[1])
    assert torch.equal(make_matmul([weight], None, None, F32)(units), weight.float().t())


@needs_compiler
def test_halves_that_are_not_finite_stay_so() -> None:
    weight = torch.tensor([[torch.inf, 1.0], [torch.nan, 1.0], [-torch.inf, 2.0]]).half()
    y = make_matmul([weight], None, None, F32)(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(y, weight.float()[:, :1].t(), equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("int8", [False, True])
def test_a_row_does_not_depend_on_its_neighbours(int8: bool) -> None:
    x = random(1, 130, 700)
    x[1::2] *= 50  # loud neighbours
    if int8:
        run = make_matmul([random_int8(2, 90, 700)], None, random(3, 90).abs(), F32)
    else:
        run = make_matmul([random(2, 90, 700)], None, None, F32)
    together = run(x)
    for rows in (1, 3, 40):
        alone = torch.cat([run(part) for part in x.split(rows)])
        assert torch.equal(alone, together)


@needs_compiler
@pytest.mark.parametrize("rows", [0, 1, 5, 13, 40])
@pytest.mark.parametrize("shape", [(1, 1), (100, 70), (32, 1027), (33, 2816)])
@pytest.mark.parametrize("bias", [False, True])
def test_int8_equals_plain(rows: int, shape: tuple[int, int], bias: bool) -> None:
    weights = [random_int8(rows, *shape), random_int8(rows + 1, 3, shape[1])]
    scale, x = random(2, shape[0] + 3).abs(), random(3, rows, shape[1])
    offset = random(4, shape[0] + 3) if bias else None
    x[:1] = 0
    expected = plain.int8_linear(x, torch.cat(weights), scale, offset)
    torch.testing.assert_close(
        make_matmul(weights, offset, scale, F32)(x), expected, rtol=1e-6, atol=1e-5
    )


@pytest.mark.parametrize("size", [2048, 2049, 5000])
@pytest.mark.parametrize("sign", [1, -1])
def test_plain_int8_sums_are_exact(size: int, sign: int) -> None:
    """Where all products are as large as they can be, and one less than that."""
    weight = torch.full((3, size), 127, dtype=torch.int8)
    weight[1, ::7], weight[2] = -128, random_int8(1, 1, size)[0]
    x = torch.full((2, size), 63.0 * sign)
    x[1, 5] = 62.0 * sign
    y = plain.int8_linear(x, weight, torch.ones(3), None)
    assert torch.equal(y, (x.double() @ weight.double().t()).float())


@needs_compiler
def test_int8_does_not_overflow_where_all_products_agree() -> None:
    weight, x = torch.full((40, 512), 127, dtype=torch.int8), torch.full((3, 512), -2.0)
    y = make_matmul([weight], None, torch.ones(40), F32)(x)
    torch.testing.assert_close(y, torch.full((3, 40), -2.0 * 127 * 512))


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_int8_rows_that_are_not_finite_stay_so_and_alone(bad: float) -> None:
    x = random(1, 4, 64)
    x[2, 7] = bad
    y = make_matmul([random_int8(2, 48, 64)], None, torch.ones(48), F32)(x)
    assert not y[2].isfinite().any()
    assert y[[0, 1, 3]].isfinite().all()


@pytest.mark.parametrize("int8", [False, True])
def test_other_dtypes_are_not_packed(int8: bool) -> None:
    weight = random_int8(1, 5, 3) if int8 else random(1, 5, 3).bfloat16()
    scale = torch.ones(5) if int8 else None
    x = random(2, 2, 3).bfloat16()
    assert not packs(CPU, torch.bfloat16)
    got = make_matmul([weight], None, scale, torch.bfloat16)(x)
    torch.testing.assert_close(
        got, F.linear(x, weight.bfloat16()), rtol=0.05, atol=2.0 if int8 else 0
    )


@needs_compiler
@pytest.mark.parametrize("rows", [1, 7, 40, 90])
def test_native_adapters_equal_plain(rows: int) -> None:
    """Three models of different ranks and parts, one that changes nothing, one with a bias."""
    columns = {"q": slice(0, 70), "k": slice(70, 96), "v": slice(96, 97)}
    sizes = {name: part.stop - part.start for name, part in columns.items()}

    def update(name: str, rank: int, bias: bool = False) -> Update:
        offset = random(rank, sizes[name]) if bias else None
        return Update(random(rank, rank, 50), random(rank + 1, rank, sizes[name]), 0.7, offset)

    adapters = [
        {"q": update("q", 16), "v": update("v", 8)},
        {"k": update("k", 3, bias=True)},
        {},
        {name: update(name, 33) for name in columns},
    ]
    x, y = random(1, rows, 50), random(2, rows, 97)
    cuts = sorted({0, rows // 5, rows // 3, rows // 2, rows})
    segments = [(cuts[i], cuts[i + 1], i % 4) for i in range(len(cuts) - 1)]
    tiles = torch.from_numpy(make_tiles(segments, 16))
    expected = y.clone()
    pool = make_pool(adapters, columns)
    assert pool is not None
    segmented_lora_plain(expected, x, tiles, pool)
    PackedAdapters(adapters, columns)(y, x, tiles, 16, ALL_CORES)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


@needs_compiler
@pytest.mark.parametrize("inputs", [64, 75])
def test_an_adapted_row_does_not_depend_on_its_neighbours(inputs: int) -> None:
    """However segments are cut, and whatever lies beside it."""
    update = Update(random(3, 18, inputs), random(4, 18, 150), 0.7, random(5, 150))
    other = Update(random(6, 5, inputs), random(7, 5, 150), 1.3, None)
    adapters = PackedAdapters([{"q": update}, {"q": other}], {"q": slice(0, 150)})
    x, y = random(1, 40, inputs), random(2, 40, 150)
    x[1::2] *= 50  # loud neighbours

    def run(*tiles: tuple[int, int, int]) -> torch.Tensor:
        changed = y.clone()
        adapters(changed, x, torch.tensor(tiles, dtype=torch.int32), 16, ALL_CORES)
        return changed

    together = run((0, 40, 0))
    for size in (1, 4, 7, 16):
        tiles = make_tiles([(0, 40, 0)], size).tolist()
        assert torch.equal(run(*tiles), together)
        for first, end, _ in tiles:
            alone = run((0, first, 1), (first, end, 0), (end, 40, 1))
            assert torch.equal(alone[first:end], together[first:end])


@needs_compiler
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dim", [1, 31, 64, 1000])
def test_native_norm_and_activation_equal_plain(rows: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    x = 4 * torch.randn(rows, dim, generator=generator)
    weight = torch.randn(dim, generator=generator)
    expected = plain.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(native.rms_norm(x, weight, 1e-5, 2), expected, rtol=1e-5, atol=1e-6)
    wide = 30 * torch.randn(rows, 2 * dim, generator=generator)
    expected = plain.silu_multiply(wide)
    torch.testing.assert_close(native.silu_multiply(wide, 2), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_native_activation_keeps_nan_and_survives_extremes() -> None:
    gate_up = torch.tensor([[float("nan"), 1e30, -1e30, 0.0, 1.0, 2.0, 3.0, 4.0]])
    out = native.silu_multiply(gate_up, 2)[0]
    assert out[0].isnan()
    assert out[1] == 2e30
    assert out[2:].tolist() == [0.0, 0.0]


@needs_compiler
@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 2), (6, 2, 64), (7, 1, 80)])
def test_native_rotation_and_writing_equal_plain(
    heads: int, kv_heads: int, dim: int, in_order: bool
) -> None:
    rows, page_size = 5, 4
    fused = torch.randn(rows, heads + 2 * kv_heads, dim)
    known = [f(torch.randn(9, 1, dim // 2)).repeat(1, 1, 2) for f in (torch.cos, torch.sin)]
    at = torch.arange(rows) if in_order else torch.tensor([8, 0, 3, 3, 7])
    cos, sin = (table[at] for table in known)
    kv = torch.zeros(3, 2, 2, kv_heads, page_size, dim)[:, 1]  # one layer of two
    where = (torch.tensor([0, 2, 2, 1, 0]), torch.tensor([0, 3, 1, 2, 1]))
    q = plain.rotate(fused[:, :heads], cos, sin)
    k = plain.rotate(fused[:, heads:-kv_heads], cos, sin)
    v = fused[:, -kv_heads:].clone()
    native.rotate_and_write(fused, *known, kv, *where, None if in_order else at, 2)
    torch.testing.assert_close(fused[:, :heads], q, rtol=0, atol=1e-6)
    torch.testing.assert_close(kv[where[0], 0, :, where[1]], k, rtol=0, atol=1e-6)
    assert torch.equal(kv[where[0], 1, :, where[1]], v)
    assert int((kv != 0).any(-1).sum()) == 2 * rows * kv_heads, "it wrote somewhere else"


@needs_compiler
def test_native_head_norm_touches_only_its_heads() -> None:
    fused, weight = torch.randn(4, 5, 64), torch.randn(64)
    expected = fused.clone()
    expected[:, 1:3] = plain.rms_norm(fused[:, 1:3], weight, 1e-6)
    native.rms_norm_heads(fused, 1, 2, weight, 1e-6, 2)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-5)
