"""The kernels of the engine as cases: how to make inputs, what to call, what it must cost at least.

A new kernel is one more function that yields cases, and one entry in `CASES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.bench.attention_cases import attention_decode, attention_prefill
from blockllm.bench.kernel_setup import Setup, tolerance
from blockllm.bench.kernels import Call, Case
from blockllm.bench.linear_cases import int8_linear, linear, narrow_linear, pack
from blockllm.core import LoraTarget, Sampling, Tensor
from blockllm.engine.batch.arrays import Segment
from blockllm.engine.kernels import fused, plain
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kernels.matmul import Matmul, make_matmul
from blockllm.engine.layers.linear import SharedLinear
from blockllm.engine.layers.segments import Segments
from blockllm.engine.sampling import sample
from blockllm.engine.sampling.choose import Filters, pick_sorted
from blockllm.engine.sampling.uniform import uniforms
from blockllm.engine.sequence.sequence import Sequence

_PAGE = 16
_EPS = 1e-5
_RANK = 16


def rms_norm(s: Setup) -> Iterator[Case]:
    """The norm before attention and MLP."""
    for rows in s.rows:

        def make(seed: int, rows: int = rows) -> Call:
            x, weight = s.random(seed, rows, s.hidden), s.random(seed + 1, s.hidden)
            return Call(
                lambda: fused.rms_norm(x, weight, _EPS, s.kernels),
                lambda: plain.rms_norm(x, weight, _EPS),
            )

        moved = 2 * rows * s.hidden * s.width
        yield Case("rms_norm", f"{s.hidden}, {rows} rows", make, moved, 4 * rows * s.hidden,
                   tolerance(s, 16))  # fmt: skip


def rms_norm_heads(s: Setup) -> Iterator[Case]:
    """The norm of each query head, in place inside the fused rows."""
    total = s.heads + 2 * s.kv_heads
    for rows in s.rows:

        def make(seed: int, rows: int = rows) -> Call:
            x, weight = s.random(seed, rows, total, s.head_dim), s.random(seed + 1, s.head_dim)

            def kernel() -> torch.Tensor:
                fused.rms_norm_heads(x, 0, s.heads, weight, _EPS, s.kernels)
                return x

            def twin() -> torch.Tensor:
                x[:, : s.heads] = plain.rms_norm(x[:, : s.heads], weight, _EPS)
                return x

            return Call(kernel, twin)

        size = rows * s.heads * s.head_dim
        yield Case("rms_norm_heads", f"{s.heads} heads, {rows} rows", make, 2 * size * s.width,
                   4 * size, tolerance(s, 16))  # fmt: skip


def silu_multiply(s: Setup) -> Iterator[Case]:
    """The activation of the gated MLP."""
    for rows in s.rows:

        def make(seed: int, rows: int = rows) -> Call:
            x = s.random(seed, rows, 2 * s.intermediate)
            return Call(lambda: fused.silu_multiply(x, s.kernels), lambda: plain.silu_multiply(x))

        size = rows * s.intermediate
        yield Case("silu_multiply", f"{s.intermediate}, {rows} rows", make, 3 * size * s.width,
                   5 * size, tolerance(s, 16))  # fmt: skip


def rotate_and_write(s: Setup) -> Iterator[Case]:
    """Rotary embedding and the way of keys and values to their pages."""
    for rows in s.rows:

        def make(seed: int, rows: int = rows) -> Call:
            heads = s.random(seed, rows, s.heads + 2 * s.kv_heads, s.head_dim)
            angles = s.random(seed + 1, rows, 1, s.head_dim // 2).repeat(1, 1, 2)
            cos, sin = angles.cos(), angles.sin()
            kv = torch.zeros(rows, 2, s.kv_heads, _PAGE, s.head_dim, device=s.device, dtype=s.dtype)
            pages = torch.randperm(rows).to(s.device)
            offsets = torch.arange(rows, device=s.device) % _PAGE

            def kernel() -> list[torch.Tensor]:
                fused.rotate_and_write(heads, cos, sin, kv, pages, offsets, s.kernels)
                return [heads, kv[pages, :, :, offsets]]

            def twin() -> list[torch.Tensor]:
                turned = heads[:, : -s.kv_heads]
                turned.copy_(plain.rotate(turned, cos, sin))
                plain.write(kv, pages, offsets, *heads[:, -2 * s.kv_heads :].chunk(2, dim=1))
                return [heads, kv[pages, :, :, offsets]]

            return Call(kernel, twin)

        kv = 2 * s.kv_heads * s.head_dim
        read = (s.heads * s.head_dim + kv + 2 * s.head_dim) * rows
        written = (s.heads * s.head_dim + kv // 2 + kv) * rows
        yield Case("rotate_and_write", f"{rows} rows", make, (read + written) * s.width,
                   3 * rows * (s.heads + s.kv_heads) * s.head_dim, tolerance(s, 16))  # fmt: skip


def lora(s: Setup) -> Iterator[Case]:
    """A linear whose rows belong to models with different low-rank updates (S-LoRA's four ways to
    distribute rows over adapters)."""
    out, size = s.linears["o"]
    for rows in s.rows:
        shares = {
            "distinct": [1] * rows,
            "uniform": _split(rows, max(1, round(rows**0.5))),
            "skewed": _halves(rows),
            "identical": [rows],
        }
        for name, counts in shares.items():

            def make(seed: int, counts: list[int] = counts) -> Call:
                return _lora_call(s, out, size, counts, seed)

            adapters = len(counts) * _RANK * (out + size)
            moved = (out * size + adapters + rows * (out + size)) * s.width
            flops = 2 * rows * (out * size + _RANK * (out + size))
            yield Case("lora", f"{name} {len(counts)} adapters, {rows} rows", make, moved, flops,
                       tolerance(s, size))  # fmt: skip


def _split(rows: int, parts: int) -> list[int]:
    return [len(part) for part in np.array_split(np.arange(rows), parts)]


def _halves(rows: int) -> list[int]:
    """The most popular adapter takes half of the rows, the next half of the rest, ..."""
    counts = []
    while rows:
        counts.append(-(-rows // 2))
        rows -= counts[-1]
    return counts


class _Tensors:
    """A loader of tensors in memory."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels
        self._tensors: dict[str, torch.Tensor] = {}

    def describe(self, tensor: torch.Tensor) -> Tensor:
        """Keep a tensor; the name by which `load` finds it."""
        name = str(len(self._tensors))
        self._tensors[name] = tensor
        return Tensor(name, "F32", tuple(tensor.shape), "", 0)

    def load(self, tensor: Tensor) -> torch.Tensor:
        """The tensor of this name."""
        return self._tensors[tensor.hash]

    read = load

    def matmul(self, weights: Any, biases: Any, scales: Any) -> Matmul:
        """A linear over one weight."""
        weight = self.load(weights[0])
        return make_matmul([weight], None, None, weight.dtype, self.kernels)


def _lora_call(s: Setup, out: int, size: int, counts: list[int], seed: int) -> Call:
    tensors, rows = _Tensors(s.kernels), sum(counts)
    weight, x = s.random(seed, out, size), s.random(seed + 1, rows, size)
    layer = SharedLinear(("o_proj",), {"o_proj.weight": tensors.describe(weight)}, tensors)
    pairs, host, targets, start = [], [], [], 0
    for adapter, count in enumerate(counts):
        a, b = s.random(seed + 2, _RANK, size), s.random(seed + 3, out, _RANK) / _RANK
        pairs.append((a, b))
        target = LoraTarget(tensors.describe(a), tensors.describe(b), 0.5)
        targets.append({"o_proj": (target,)})
        host.append(Segment(start, start + count, str(adapter)))
        start += count
    layer.attach(targets, tensors)
    adapters = {str(i): i for i in range(len(counts))}
    segments = Segments(host, adapters, rows, x.device, kernels=s.kernels)

    def twin() -> torch.Tensor:
        y = F.linear(x, weight)
        for (a, b), segment in zip(pairs, segments, strict=True):
            part = x[segment.start : segment.stop]
            y[segment.start : segment.stop] += 0.5 * F.linear(F.linear(part, a), b)
        return y

    return Call(lambda: layer(x, segments), twin)


def sampling(s: Setup) -> Iterator[Case]:
    """From logits to tokens: the largest, a draw from all, a draw from the most likely."""
    for name, options in {
        "greedy": Sampling(temperature=0.0),
        "plain": Sampling(temperature=1.0, seed=1),
        "filtered": Sampling(temperature=1.0, top_p=0.9, top_k=50, seed=1),
    }.items():
        for rows in s.rows:

            def make(seed: int, options: Sampling = options, rows: int = rows) -> Call:
                logits = s.random(seed, rows, s.vocab).float() * 4
                sequences = [_sequence(options, i) for i in range(rows)]

                def kernel() -> torch.Tensor:
                    return torch.tensor(
                        [chosen.token for chosen in sample(logits, sequences, s.kernels)]
                    )

                return Call(kernel, lambda: _plain_sample(logits, options, sequences))

            yield Case("sampling", f"{name}, {rows} rows", make, rows * s.vocab * 4, 0, 0.0)


def _sequence(options: Sampling, number: int) -> Sequence:
    """What sampling asks of a sequence."""
    facts = {
        "request": SimpleNamespace(sampling=options),
        "seed": number,
        "num_total": 9,
        "num_generated": 1,
        "is_plainly_greedy": options.temperature == 0.0,
    }
    return cast(Sequence, SimpleNamespace(**facts))


def _plain_sample(
    logits: torch.Tensor, options: Sampling, sequences: list[Sequence]
) -> torch.Tensor:
    if options.temperature == 0.0:
        return logits.argmax(-1).cpu()
    seeds = np.array([s.seed for s in sequences], np.uint64)
    u = torch.from_numpy(uniforms(seeds, np.full(len(seeds), 9, np.uint64))).to(logits.device)
    rows = len(logits)
    k = torch.full((rows,), options.top_k or logits.shape[-1], device=logits.device)
    p = torch.full((rows,), options.top_p, dtype=torch.float64, device=logits.device)
    if options.top_k:
        return pick_sorted(logits.softmax(-1), Filters(k, p), u).cpu()
    sums = logits.softmax(-1).double().cumsum(-1)
    return torch.searchsorted(sums, u[:, None] * sums[:, -1:], right=True)[:, 0].cpu()


CASES: tuple[Callable[[Setup], Iterator[Case]], ...] = (
    linear,
    narrow_linear,
    int8_linear,
    pack,
    lora,
    rms_norm,
    rms_norm_heads,
    silu_multiply,
    rotate_and_write,
    attention_decode,
    attention_prefill,
    sampling,
)


def all_cases(setup: Setup) -> list[Case]:
    """Every case of every kernel."""
    return [case for cases in CASES for case in cases(setup)]
