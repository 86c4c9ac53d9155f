"""Every kernel equals its plain twin."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blockllm.engine.kernels import native, plain
from blockllm.engine.kernels.build import native_library
from blockllm.engine.kernels.matmul import make_matmul, packs, padded_rows


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 16, 33, 200])
@pytest.mark.parametrize("shape", [(1, 1), (48, 32), (97, 31), (7, 130), (704, 256)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_matmul_equals_plain(rows: int, shape: tuple[int, int], bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(shape, generator=generator)
    offset = torch.randn(shape[0], generator=generator) if bias else None
    x = torch.randn(rows, shape[1], generator=generator)
    assert packs(weight), "this build of torch lacks oneDNN; the plain path is used"
    torch.testing.assert_close(
        make_matmul(weight, offset)(x), F.linear(x, weight, offset), rtol=0, atol=2e-4
    )


def test_few_row_counts_are_used_and_little_is_wasted() -> None:
    assert [padded_rows(n) for n in (1, 7, 8, 9, 16, 33, 65, 256, 257)] == [
        1, 7, 8, 16, 16, 40, 96, 256, 384,
    ]  # fmt: skip
    counts = {padded_rows(rows) for rows in range(1, 513)}
    assert len(counts) <= 24
    assert all(rows <= padded_rows(rows) < 1.5 * rows + 4 for rows in range(1, 513))


def test_other_dtypes_are_not_packed() -> None:
    weight = torch.randn(5, 3, dtype=torch.bfloat16)
    x = torch.randn(2, 3, dtype=torch.bfloat16)
    assert not packs(weight)
    assert torch.equal(make_matmul(weight, None)(x), F.linear(x, weight))


needs_compiler = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")


@needs_compiler
@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("dim", [1, 31, 64, 1000])
def test_native_norm_and_activation_equal_plain(rows: int, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    x = 4 * torch.randn(rows, dim, generator=generator)
    weight = torch.randn(dim, generator=generator)
    expected = plain.rms_norm(x, weight, 1e-5)
    torch.testing.assert_close(native.rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-6)
    wide = 30 * torch.randn(rows, 2 * dim, generator=generator)
    expected = plain.silu_multiply(wide)
    torch.testing.assert_close(native.silu_multiply(wide), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_native_activation_keeps_nan_and_survives_extremes() -> None:
    gate_up = torch.tensor([[float("nan"), 1e30, -1e30, 0.0, 1.0, 2.0, 3.0, 4.0]])
    out = native.silu_multiply(gate_up)[0]
    assert out[0].isnan()
    assert out[1] == 2e30
    assert out[2:].tolist() == [0.0, 0.0]


@needs_compiler
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 2), (6, 2, 64), (7, 1, 80)])
def test_native_rotation_and_writing_equal_plain(heads: int, kv_heads: int, dim: int) -> None:
    rows, page_size = 5, 4
    fused = torch.randn(rows, heads + 2 * kv_heads, dim)
    cos, sin = (f(torch.randn(rows, 1, dim // 2)).repeat(1, 1, 2) for f in (torch.cos, torch.sin))
    kv = torch.zeros(3, 2, 2, page_size, kv_heads, dim)[:, 1]  # one layer of two
    where = (torch.tensor([0, 2, 2, 1, 0]), torch.tensor([0, 3, 1, 2, 1]))
    q = plain.rotate(fused[:, :heads], cos, sin)
    k = plain.rotate(fused[:, heads:-kv_heads], cos, sin)
    v = fused[:, -kv_heads:].clone()
    native.rotate_and_write(fused, cos, sin, kv, *where)
    torch.testing.assert_close(fused[:, :heads], q, rtol=0, atol=1e-6)
    torch.testing.assert_close(kv[where[0], 0, where[1]], k, rtol=0, atol=1e-6)
    assert torch.equal(kv[where[0], 1, where[1]], v)
    assert int((kv != 0).any(-1).sum()) == 2 * rows * kv_heads, "it wrote somewhere else"


@needs_compiler
def test_native_head_norm_touches_only_its_heads() -> None:
    fused, weight = torch.randn(4, 5, 64), torch.randn(64)
    expected = fused.clone()
    expected[:, 1:3] = plain.rms_norm(fused[:, 1:3], weight, 1e-6)
    native.rms_norm_heads(fused, 1, 2, weight, 1e-6)
    torch.testing.assert_close(fused, expected, rtol=0, atol=1e-5)
