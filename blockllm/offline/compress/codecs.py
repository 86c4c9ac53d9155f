"""Codecs of the difference between two weights. Each makes targets of it; several stages stack, a
later one encodes what the earlier ones left.

Signs with a scale by row: BitDelta (arXiv 2402.10193). Groups of few bits: as in DeltaZip (arXiv
2312.05215). Strong directions in fp16, the rest in few bits: after Delta-CoMe (arXiv 2406.08903).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.core import Tensor
from blockllm.engine.kernels.coded import Coded, Sparse, densify
from blockllm.zoo.assemble import NewTarget

Stage = Callable[[torch.Tensor], NewTarget]  # [out, in] fp32 → what stands for it

# width of a step that suits normally distributed values best, in standard deviations
_STEPS = {1: 1.596, 2: 0.9957, 4: 0.3352}
_ROUNDS = 5  # of fitting codes and scales to each other
# Least squares makes every difference too short, so all err towards the base, and such errors add
# up over the layers; scales that keep the length along the difference err more, but in all
# directions
_STRETCH = 0.5  # of the way from the former to the latter, see docs/compressed-deltas.md
_GROUP = 128  # inputs of one scale
_RANK_SHARE = 32  # ranks kept are at most this part of the shorter side …
_ENERGY = 0.5  # … or fewer, if these hold so much of the squares
_EXACT_SIDE = 2048  # shorter sides up to which all singular values are computed
_DENSITY = 1 / 32  # of elements that a sparse difference keeps


def coded(bits: int, group: int | None = _GROUP) -> Stage:
    """Codes of `bits` bits with one scale for every `group` inputs (None: for a whole row), fitted
    to each other. Needs inputs that fill whole bytes; a group that does not fit is a row."""

    def encode(difference: torch.Tensor) -> NewTarget:
        out, inputs = difference.shape
        groups = inputs // group if group and inputs % group == 0 else 1
        values = difference.view(out, groups, -1)
        highest = 2**bits - 1
        scale = values.square().mean(-1, keepdim=True).sqrt() * _STEPS[bits]
        for _ in range(_ROUNDS):
            codes = (values / scale.clamp_min(1e-20) + highest / 2).round_().clamp_(0, highest)
            centred = codes - highest / 2
            squares = centred.square().sum(-1, keepdim=True)  # never 0: no centred code is
            along = (values * centred).sum(-1, keepdim=True)
            scale = along / squares
        full = values.square().sum(-1, keepdim=True) / along.clamp_min(1e-30)
        scale = torch.lerp(scale, full, _STRETCH)
        packed = _pack(codes.view(out, inputs).to(torch.uint8), bits)
        scales = scale[..., 0].half().numpy()
        return NewTarget("coded", {"codes": packed, "scales": scales}, {"bits": bits})

    return encode


def _pack(codes: torch.Tensor, bits: int) -> NDArray[np.uint8]:
    # [out, in], a code each → [out, in · bits / 8]
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)
    packed = (codes.view(len(codes), -1, 8 // bits) << shifts).sum(-1, dtype=torch.uint8)
    found: NDArray[np.uint8] = packed.numpy()
    return found


def low_rank(difference: torch.Tensor) -> NewTarget:
    """The strongest directions: few, and no more than hold half of the squares."""
    most = max(1, min(difference.shape) // _RANK_SHARE)
    u, s, v = _svd(difference, most)
    held = s.square().cumsum(0) / difference.square().sum().clamp_min(1e-30)
    rank = min(most, int((held < _ENERGY).sum()) + 1)
    root = s[:rank].sqrt()
    a, b = root[:, None] * v[:rank], u[:, :rank] * root
    return NewTarget("lora", {"a": a.half().numpy(), "b": b.half().numpy()}, {"scale": 1.0})


def _svd(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # [out, rank], [rank], [rank, in]
    if min(matrix.shape) <= _EXACT_SIDE:
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(matrix, q=rank + 16)
    return u[:, :rank], s[:rank], v.t()[:rank]


def sparse(difference: torch.Tensor) -> NewTarget:
    """The largest elements, as many as a fixed share of all; without loss (but for rounding) where
    no more than these differ."""
    size = difference.abs().flatten()
    most = max(1, int(len(size) * _DENSITY))
    count = min(most, max(1, int((size > 0).sum())))
    kept = torch.zeros(size.shape, dtype=torch.bool)
    kept[size.topk(count).indices] = True
    kept = kept.view(difference.shape)
    values = difference[kept].half().numpy()
    columns = kept.nonzero()[:, 1].to(torch.int32).numpy()
    ends = kept.sum(1).cumsum(0).to(torch.int32).numpy()
    return NewTarget("sparse", {"values": values, "columns": columns, "ends": ends}, {})


_STAGES: dict[str, Stage] = {
    "sparse": sparse,
    "sign": coded(1, None),
    "int2": coded(2),
    "int4": coded(4),
    "rank": low_rank,
}
CODECS = (
    ("sparse",), ("rank",), ("sign",), ("rank", "sign"), ("int2",), ("rank", "int2"), ("int4",),
    ("int4", "int2"), ("int4", "int4"),
)  # fmt: skip
_FOR_EMBEDDINGS = ("sparse", "sign", "int2", "int4")  # stages that its lookup can add


def codecs_for(shape: tuple[int, int], embeds: bool) -> list[tuple[str, ...]]:
    """The codecs that a weight [out, in] can take; `embeds`: it is an embedding."""
    fitting = {name for name in _STAGES if not embeds or name in _FOR_EMBEDDINGS}
    per_byte = {"sign": 8, "int2": 4, "int4": 2}
    fitting -= {name for name, count in per_byte.items() if shape[1] % count}
    return [codec for codec in CODECS if fitting.issuperset(codec)]


def encode(
    difference: torch.Tensor, codecs: list[tuple[str, ...]]
) -> dict[tuple[str, ...], tuple[tuple[NewTarget, ...], float]]:
    """The targets by codec, and the sum of squares that they leave. Stages in common run once."""
    known: dict[tuple[str, ...], tuple[tuple[NewTarget, ...], torch.Tensor]] = {
        (): ((), difference)
    }
    found = {}
    for codec in codecs:
        for length in range(1, len(codec) + 1):
            if codec[:length] not in known:
                before, left = known[codec[: length - 1]]
                target = _STAGES[codec[length - 1]](left)
                rest = left - decode(target, difference.shape[1])
                known[codec[:length]] = (*before, target), rest
        targets, rest = known[codec]
        found[codec] = targets, float(rest.square().sum(dtype=torch.float64))
    return found


def decode(target: NewTarget, inputs: int) -> torch.Tensor:
    """The weight difference that a target stands for, [out, inputs] fp32."""
    parts = {name: torch.from_numpy(array) for name, array in arrays(target).items()}
    if target.kind == "lora":
        return parts["b"].float() @ parts["a"].float()
    if target.kind == "coded":
        return densify(Coded(parts["codes"], parts["scales"].float(), **target.settings), inputs)
    return densify(Sparse(parts["values"].float(), parts["columns"], parts["ends"]), inputs)


def arrays(target: NewTarget) -> dict[str, NDArray[Any]]:
    """The parts of a target that lie in memory."""
    return {name: part for name, part in target.parts.items() if not isinstance(part, Tensor)}
