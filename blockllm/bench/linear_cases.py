"""Linears as kernel cases, and the packing of their weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from blockllm.bench.kernel_setup import Setup, tolerance
from blockllm.bench.kernels import Call, Case
from blockllm.engine.kernels import packed, plain
from blockllm.engine.kernels.matmul import make_matmul, packs


def linear(s: Setup) -> Iterator[Case]:
    """y = x Wᵀ with W as the engine keeps it."""
    for name, (out, size) in s.linears.items():
        for rows in s.rows:

            def make(seed: int, out: int = out, size: int = size, rows: int = rows) -> Call:
                weight, x = s.random(seed, out, size), s.random(seed + 1, rows, size)
                run = make_matmul([weight], None, None, weight.dtype)
                return Call(lambda: run(x), lambda: F.linear(x, weight))

            moved = (out * size + rows * (out + size)) * s.width
            yield Case("linear", f"{name} {out}x{size}, {rows} rows", make, moved,
                       2 * rows * out * size, tolerance=tolerance(s, size))  # fmt: skip


def int8_linear(s: Setup) -> Iterator[Case]:
    """The same with int8 weights. The measured peak is of floats: the limit is of bytes alone."""
    for name, (out, size) in s.linears.items():
        for rows in s.rows:

            def make(seed: int, out: int = out, size: int = size, rows: int = rows) -> Call:
                weight, x = _random_int8(s, seed, out, size), s.random(seed + 1, rows, size)
                scale = torch.full((out,), 1 / 32, device=s.device)
                run = make_matmul([weight], None, scale, s.dtype)
                return Call(lambda: run(x), lambda: plain.int8_linear(x, weight, scale, None))

            moved = out * (size + 4) + rows * (out + size) * s.width
            yield Case("int8_linear", f"{name} {out}x{size}, {rows} rows", make, moved, 0,
                       tolerance=tolerance(s, size))  # fmt: skip


def pack(s: Setup) -> Iterator[Case]:
    """Weights to the panels that the linears of the CPU read; faults of new memory included."""
    if not packs(s.device, s.dtype):
        return
    for name, (out, size) in s.linears.items():

        def floats(seed: int, out: int = out, size: int = size) -> Call:
            weight = s.random(seed, out, size)
            return Call(
                lambda: packed.pack_floats([weight]),
                lambda: plain.pack(weight, 1, packed.PANEL)[..., 0],
            )

        def int8(seed: int, out: int = out, size: int = size) -> Call:
            weight = _random_int8(s, seed, out, size)
            return Call(
                lambda: packed.pack_int8([weight]),
                lambda: (plain.pack(weight, 4, packed.PANEL), plain.int8_offsets(weight)),
            )

        for kind, make, width in (("fp32", floats, 4), ("int8", int8, 1)):
            yield Case("pack", f"{kind} {name} {out}x{size}", make, 2 * out * size * width, 0,
                       tolerance=0.0)  # fmt: skip


def _random_int8(s: Setup, seed: int, out: int, size: int) -> torch.Tensor:
    """As large as normal numbers divided by 1 / 32."""
    return (s.random(seed, out, size) * 32).round().clamp(-127, 127).to(torch.int8)
