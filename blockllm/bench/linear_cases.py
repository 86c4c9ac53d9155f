"""Linears as kernel cases, and the packing of their weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from blockllm.bench.kernel_setup import Setup, tolerance
from blockllm.bench.kernels import Call, Case
from blockllm.engine.kernels import plain
from blockllm.engine.kernels.cpu import native, packed
from blockllm.engine.kernels.matmul import make_matmul, packs


def linear(s: Setup) -> Iterator[Case]:
    """y = x Wᵀ with W as the engine keeps it."""

    def make(weight: torch.Tensor, x: torch.Tensor) -> Call:
        run = make_matmul([weight], None, None, weight.dtype, s.kernels)
        return Call(lambda: run(x), lambda: F.linear(x, weight))

    return _each(s, "linear", lambda size: size * s.width, True, s.random, make)


def narrow_linear(s: Setup) -> Iterator[Case]:
    """y = x Wᵀ with weights that keep their 16 bits in memory while rows are fp32."""

    def weights(seed: int, out: int, size: int) -> torch.Tensor:
        return s.random(seed, out, size).bfloat16()

    def make(weight: torch.Tensor, x: torch.Tensor) -> Call:
        run, wide = make_matmul([weight], None, None, x.dtype, s.kernels), weight.to(x.dtype)
        return Call(lambda: run(x), lambda: F.linear(x, wide))

    if packs(s.device, s.dtype):
        yield from _each(s, "narrow_linear", lambda size: size * 2, True, weights, make)


def int8_linear(s: Setup) -> Iterator[Case]:
    """y = x Wᵀ with int8 weights. The measured peak is of floats: the limit is of bytes alone."""

    def weights(seed: int, out: int, size: int) -> torch.Tensor:
        return _random_int8(s, seed, out, size)

    def make(weight: torch.Tensor, x: torch.Tensor) -> Call:
        scale = torch.full((len(weight),), 1 / 32, device=s.device)
        run = make_matmul([weight], None, scale, s.dtype, s.kernels)
        return Call(lambda: run(x), lambda: plain.int8_linear(x, weight, scale, None))

    return _each(s, "int8_linear", lambda size: size + 4, False, weights, make)


def _each(
    s: Setup,
    case: str,
    output_bytes: Callable[[int], int],  # what is read of an output with so many inputs
    floats: bool,
    weights: Callable[[int, int, int], torch.Tensor],  # seed, out, in → [out, in]
    make: Callable[[torch.Tensor, torch.Tensor], Call],  # of weights and x [rows, in]
) -> Iterator[Case]:
    """A case for every linear of the model and number of rows."""
    for name, (out, size) in s.linears.items():
        for rows in s.rows:

            def call(seed: int, out: int = out, size: int = size, rows: int = rows) -> Call:
                return make(weights(seed, out, size), s.random(seed + 1, rows, size))

            moved = out * output_bytes(size) + rows * (out + size) * s.width
            yield Case(case, f"{name} {out}x{size}, {rows} rows", call, moved,
                       2 * rows * out * size * floats, tolerance=tolerance(s, size))  # fmt: skip


def pack(s: Setup) -> Iterator[Case]:
    """Weights to the panels that the linears of the CPU read; faults of new memory included."""
    if not packs(s.device, s.dtype):
        return
    for name, (out, size) in s.linears.items():

        def floats(seed: int, out: int = out, size: int = size) -> Call:
            weight = s.random(seed, out, size)
            return Call(
                lambda: packed.pack_floats([weight], s.kernels.threads),
                lambda: plain.pack(weight, 1, native.panel_width()),
            )

        def int8(seed: int, out: int = out, size: int = size) -> Call:
            weight = _random_int8(s, seed, out, size)
            return Call(
                lambda: packed.pack_int8([weight], s.kernels.threads),
                lambda: (plain.pack(weight, 4, native.panel_width()), plain.int8_offsets(weight)),
            )

        for kind, make, width in (("fp32", floats, 4), ("int8", int8, 1)):
            yield Case("pack", f"{kind} {name} {out}x{size}", make, 2 * out * size * width, 0,
                       tolerance=0.0)  # fmt: skip


def _random_int8(s: Setup, seed: int, out: int, size: int) -> torch.Tensor:
    """As large as normal numbers divided by 1 / 32."""
    return (s.random(seed, out, size) * 32).round().clamp(-127, 127).to(torch.int8)
