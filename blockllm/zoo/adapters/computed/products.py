"""Differences that are products of two small matrices' products.

LoHa   (B1 A1) ∘ (B2 A2), element by element (FedPara, arXiv 2108.06098)      rank r · r
LoKr   (B1 A1) ⊗ (B2 A2), of Kronecker; each side also as one full matrix     rank k1 · k2
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import ByModule, read_numbers, read_ranks
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_OPTIONS = COMMON | {
    "alpha", "alpha_pattern", "decompose_both", "decompose_factor", "module_dropout", "r",
    "rank_dropout", "rank_dropout_scale", "rank_pattern", "use_effective_conv2d",
}  # fmt: skip
_LOHA = {f".hada_{part}": part for part in ("w1_a", "w1_b", "w2_a", "w2_b")}
_LOKR = {f".lokr_{part}": part for part in ("w1_a", "w1_b", "w1", "w2_a", "w2_b", "w2")}


def read_loha(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's LOHA; raises a CheckpointError."""
    check_options(reader, _OPTIONS)
    ranks, alphas = read_ranks(reader), read_numbers(reader, "alpha", "alpha_pattern")

    def change(module: Module) -> Change:
        rank = ranks.of(module.name)
        out, inputs = module.sizes
        downs, ups = (rank, inputs), (out, rank)
        module.check({"w1_a": ups, "w1_b": downs, "w2_a": ups, "w2_b": downs})
        return module.low_rank(
            rank * rank,
            lambda _: _pairs(module.read("w1_b"), module.read("w2_b")),
            lambda _: _pairs(module.read("w1_a").T, module.read("w2_a").T).T,
            alphas.of(module.name) / rank,
            difference=lambda _: _product(module, "w1") * _product(module, "w2"),
        )

    return read_modules(reader, "loha", strip_prefix(tensors), layers, _LOHA, change)


def read_lokr(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's LOKR; raises a CheckpointError."""
    check_options(reader, _OPTIONS)
    ranks, alphas = read_ranks(reader), read_numbers(reader, "alpha", "alpha_pattern")
    return read_modules(
        reader, "lokr", strip_prefix(tensors), layers, _LOKR, lambda m: _kronecker(m, ranks, alphas)
    )


def _kronecker(module: Module, ranks: ByModule[int], alphas: ByModule[float]) -> Change:
    rank = ranks.of(module.name)
    shapes = {part: source.entry.shape for part, source in module.parts.items()}
    _check_sides(module, shapes, rank)
    scale = alphas.of(module.name) / rank
    return module.low_rank(
        _inner(shapes, "w1") * _inner(shapes, "w2"),
        lambda _: np.kron(_factors(module, "w1")[1], _factors(module, "w2")[1]),
        lambda _: np.kron(_factors(module, "w1")[0], _factors(module, "w2")[0]),
        scale,
        difference=lambda _: np.kron(_product(module, "w1"), _product(module, "w2")),
    )


def _check_sides(module: Module, shapes: Mapping[str, tuple[int, ...]], rank: int) -> None:
    sides = []
    for side in ("w1", "w2"):
        up, down = f"{side}_a", f"{side}_b"
        if side in shapes and not {up, down} & set(shapes):
            sides.append(shapes[side])
        elif {up, down} <= set(shapes) and shapes[up][1:] == shapes[down][:1] == (rank,):
            sides.append((shapes[up][0], *shapes[down][1:]))
    found = ", ".join(f"{part} {list(shape)}" for part, shape in sorted(shapes.items()))
    fits = len(sides) == 2 and all(len(shape) == 2 for shape in [*sides, *shapes.values()])
    if not fits or tuple(map(math.prod, zip(*sides, strict=True))) != module.sizes:
        raise AdapterMismatch(
            f"{module.name[:200]}: expected two sides whose sizes multiply to "
            f"{list(module.sizes)}, at rank {rank}, got {found[:200]}"
        )
    for source in module.parts.values():
        source.check_dtype()


def _inner(shapes: Mapping[str, tuple[int, ...]], side: str) -> int:
    return shapes[f"{side}_b"][0] if f"{side}_b" in shapes else min(shapes[side])


def _factors(module: Module, side: str) -> tuple[Floats, Floats]:
    """The side as up [out, inner] times down [inner, in]; of a full matrix one is the unit."""
    if side not in module.parts:
        return module.read(f"{side}_a"), module.read(f"{side}_b")
    full = module.read(side)
    unit = np.eye(min(full.shape), dtype=np.float32)
    return (full, unit) if full.shape[1] <= full.shape[0] else (unit, full)


def _product(module: Module, side: str) -> Floats:
    up, down = _factors(module, side)
    return up @ down


def _pairs(first: Floats, second: Floats) -> Floats:
    """The products of every row of one with every row of the other. [rows · rows, columns]"""
    return (first[:, None] * second).reshape(-1, first.shape[1])
