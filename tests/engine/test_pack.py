"""Packed weights equal torch's permutation, bit for bit, whatever the shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockllm.engine.kernels import plain
from blockllm.engine.kernels.cpu import native, packed
from blockllm.engine.kernels.cpu.build import native_library

pytestmark = pytest.mark.skipif(native_library() is None, reason="no C++ compiler")

SHAPES = [
    ([1], 1),
    ([32], 16),
    ([33], 17),
    ([31, 1], 64),
    ([7, 70, 1], 1027),
    ([96, 64, 32], 4),
    ([100, 3, 200], 66),
    ([4000], 130),  # several chunks for each thread
]
any_shape = given(
    st.lists(st.integers(1, 100), min_size=1, max_size=4), st.integers(1, 70), st.integers(0, 99)
)


FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def check_floats(outs: list[int], size: int, seed: int, dtype: torch.dtype = FLOATS[0]) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(out, size, generator=generator).to(dtype) for out in outs]
    kept = torch.float32 if size % 2 else dtype
    expected = plain.pack(torch.cat(weights).to(kept), 4 // kept.itemsize, native.panel_width())
    assert torch.equal(packed.pack_floats(weights, 2), expected)


def check_int8(outs: list[int], size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randint(-128, 128, (out, size), generator=generator, dtype=torch.int8) for out in outs
    ]
    found, offsets = packed.pack_int8(weights, 2)
    together = torch.cat(weights)
    assert torch.equal(found, plain.pack(together, 4, native.panel_width()))
    assert torch.equal(offsets, plain.int8_offsets(together))


@pytest.mark.parametrize(("outs", "size"), SHAPES)
def test_shapes_at_the_edges(outs: list[int], size: int) -> None:
    for dtype in FLOATS:
        check_floats(outs, size, 1, dtype)
    check_int8(outs, size, 2)


@any_shape
@settings(max_examples=60, deadline=None)
def test_any_stack_of_floats(outs: list[int], size: int, seed: int) -> None:
    check_floats(outs, size, seed)
    check_floats(outs, size, seed, FLOATS[1 + seed % 2])


def test_mixed_floats_become_fp32() -> None:
    weights = [torch.randn(40, 6).bfloat16(), torch.randn(9, 6)]
    expected = plain.pack(
        torch.cat([weight.float() for weight in weights]), 1, native.panel_width()
    )
    assert torch.equal(packed.pack_floats(weights, 2), expected)


@any_shape
@settings(max_examples=60, deadline=None)
def test_any_stack_of_int8(outs: list[int], size: int, seed: int) -> None:
    check_int8(outs, size, seed)


def test_bits_that_are_no_numbers_stay() -> None:
    bits = torch.tensor([0x7FC00001, -0x400000 + 5, -(2**31), 1], dtype=torch.int32)
    weight = bits.repeat(40, 8).view(torch.float32)
    got = packed.pack_floats([weight], 2).view(torch.int32)
    assert torch.equal(got, plain.pack(weight.view(torch.int32), 1, native.panel_width()))


def test_weights_need_not_lie_together() -> None:
    wide = torch.randn(40, 90)
    assert torch.equal(
        packed.pack_floats([wide[:, :33]], 2), packed.pack_floats([wide[:, :33].clone()], 2)
    )


def test_packed_weights_outlive_their_source() -> None:
    weight = torch.randn(64, 20)
    kept = weight.clone()
    found = packed.pack_floats([weight], 2)
    weight.zero_()
    assert torch.equal(found, plain.pack(kept, 1, native.panel_width()))
