"""Norms, activation, rotation with writing: each equals its plain twin, in every dtype."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from blockllm.engine.kernels import fused, plain
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kernels.triton import activation, norm, rotate

DTYPES = [torch.float32, torch.float16, torch.bfloat16]

PLAIN = Kernels(1, built=False)


def close(got: torch.Tensor, expected: torch.Tensor, terms: float = 1e-3) -> None:
    """Equal up to one rounding of the dtype of the result, and of sums' terms of size `terms`
    (the interpreter cuts bfloat16 off instead of rounding it)."""
    exact = expected.dtype == torch.float32
    epsilon = 2e-6 if exact else 2 * torch.finfo(expected.dtype).eps
    torch.testing.assert_close(got, expected, rtol=epsilon, atol=epsilon * max(terms, exact))


def random(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(device, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("dim", [1, 24, 64, 130])
def test_norms(rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> None:
    wide = 4 * random(rows, 2 * dim, dtype=dtype, device=device)
    x, weight = wide[:, :dim], random(dim, dtype=dtype, device=device)  # rows lie apart
    close(norm.rms_norm(x, weight, 1e-5), plain.rms_norm(x, weight, 1e-5))
    total, normed = norm.add_rms_norm(x, wide[:, dim:], weight, 1e-6)
    close(total, x + wide[:, dim:])
    close(normed, plain.rms_norm(total, weight, 1e-6))


def test_norm_is_rounded_before_the_weight(device: torch.device) -> None:
    """As the reference does; in one rounding, every fourth number would be another."""
    kind = {"dtype": torch.float16, "device": device}
    x, weight = random(4, 512, **kind), random(512, **kind)
    differ = norm.rms_norm(x, weight, 1e-5) != plain.rms_norm(x, weight, 1e-5)
    assert differ.float().mean() < 0.02


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 80])
def test_norm_of_heads_touches_only_them(
    dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    states = random(3, 5, dim, dtype=dtype, device=device)
    weight = random(dim, dtype=dtype, device=device)
    expected = states.clone()
    expected[:, 1:3] = plain.rms_norm(states[:, 1:3], weight, 1e-6)
    norm.rms_norm_heads(states, 1, 2, weight, 1e-6)
    close(states, expected)
    assert torch.equal(states[:, 3:], expected[:, 3:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 48, 1100])
def test_activation(size: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = 20 * random(3, 2 * size, dtype=dtype, device=device)
    close(activation.silu_multiply(gate_up), plain.silu_multiply(gate_up))


def test_activation_keeps_nan_and_survives_extremes(device: torch.device) -> None:
    gate_up = torch.tensor([[float("nan"), 1e30, -1e30, 0.0, 1.0, 2.0, 3.0, 4.0]], device=device)
    out = activation.silu_multiply(gate_up)[0]
    assert out[0].isnan()
    assert out[1] == 2e30
    assert out[2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(1, 1, 16), (6, 2, 64), (7, 1, 80)])
def test_rotation_and_writing(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    states = random(5, heads + 2 * kv_heads, dim, dtype=dtype, device=device)
    angles = random(5, 1, dim // 2, dtype=torch.float32, device=device).repeat(1, 1, 2)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    pages = torch.tensor([0, 2, 2, 1, 0], device=device)
    offsets = torch.tensor([0, 3, 1, 2, 1], device=device)
    twin, kv = states.clone(), torch.zeros(3, 2, 2, kv_heads, 4, dim, dtype=dtype, device=device)
    expected = kv.clone()
    fused.rotate_and_write(twin, cos, sin, expected[:, 1], pages, offsets, PLAIN)
    rotate.rotate_and_write(states, cos, sin, kv[:, 1], pages, offsets)  # one layer of two
    close(states, twin, terms=4)
    close(kv, expected, terms=4)
    assert torch.equal(states[:, -kv_heads:], twin[:, -kv_heads:]), "values are not rotated"
