"""Weights turned by orthogonal matrices, block by block: merged.

OFT    W Rᵀ, R of blocks along the inputs (arXiv 2306.07280, v2: 2506.19847)
BOFT   diag(s) W Rᵀ, R a product of such matrices, the later ones between inputs ever farther
       apart (arXiv 2311.06243)
RoAd   R W and R b, R of 2 x 2 blocks: output i of a group's first half with i of its second
       (arXiv 2409.00119)
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, Integers, Weights
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_OFT_OPTIONS = COMMON | {
    "block_share", "coft", "eps", "module_dropout", "num_cayley_neumann_terms", "oft_block_size",
    "r", "use_cayley_neumann",
}  # fmt: skip
_BOFT_OPTIONS = COMMON | {
    "boft_block_num", "boft_block_size", "boft_dropout", "boft_n_butterfly_factor",
}  # fmt: skip
# numbers of an angle or a scale for every two outputs
_ROAD_NUMBERS = {"road_1": 1, "road_2": 2, "road_4": 4}


def read_oft(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's OFT; raises a CheckpointError."""
    check_options(reader, _OFT_OPTIONS)
    is_shared = reader.boolean("block_share", False)
    limit = reader.number("eps", 6e-5) if reader.boolean("coft", False) else None
    terms = None
    if reader.boolean("use_cayley_neumann", True):
        terms = reader.integer("num_cayley_neumann_terms", 5, high=64)

    def change(module: Module) -> Change:
        _, inputs = module.sizes
        size = _oft_size(module, inputs, is_shared)

        def merge(weights: Weights) -> Floats:
            skew = _skew(module.read("r"), size)
            turns = _series(_limit(skew, limit), terms) if terms else _cayley(_limit(skew, limit))
            return _turn(weights[module.weight], turns)

        return module.merge(merge)

    return read_modules(
        reader, "oft", strip_prefix(tensors), layers, {".oft_R.weight": "r"}, change
    )


def read_boft(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's BOFT; raises a CheckpointError."""
    check_options(reader, _BOFT_OPTIONS)

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        factors, size = module.size_of("r"), module.parts["r"].entry.shape[-1]
        widest = (size << min(factors, 32)) // 2  # inputs that the last factor mixes
        if not factors or not widest or inputs % widest or (factors > 1 and size % 2):
            raise AdapterMismatch(
                f"{module.name[:200]}: {factors} factors of blocks of {size} do not fit {inputs}"
            )
        module.check({"r": (factors, inputs // size, size, size), "s": (out, 1)})

        def merge(weights: Weights) -> Floats:
            turned = weights[module.weight]
            for level, blocks in enumerate(module.read("r")):
                turns = _cayley(0.5 * (blocks - blocks.swapaxes(1, 2)))
                order = _butterfly(inputs, size, level)
                turned = _turn(turned[:, np.argsort(order)], turns)[:, order]
            return module.read("s") * turned

        return module.merge(merge)

    suffixes = {".boft_R": "r", ".boft_s": "s"}
    return read_modules(reader, "boft", strip_prefix(tensors), layers, suffixes, change)


def read_road(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's ROAD; raises a CheckpointError."""
    check_options(reader, COMMON | {"group_size", "variant"})
    group, variant = reader.integer("group_size", 64), reader.text("variant", "road_1")
    if variant not in _ROAD_NUMBERS or group % 2:
        raise UnsupportedModel(
            f"{reader.where}: variant {variant[:40]!r} with groups of {group} is not supported "
            f"(variants: {', '.join(_ROAD_NUMBERS)}; even groups)"
        )

    def change(module: Module) -> Change:
        out, _ = module.sizes
        if out % group:
            raise AdapterMismatch(f"{module.name[:200]}: {out} outputs are no groups of {group}")
        size = (out // 2 * _ROAD_NUMBERS[variant],)
        module.check({"theta": size, "alpha": size})

        def turn(rows: Floats) -> Floats:  # [out, columns]
            own, other = _road_columns(module, _ROAD_NUMBERS[variant], group)
            halves = rows.reshape(out // group, 2, group // 2, -1)
            turned = np.stack([-halves[:, 1], halves[:, 0]], axis=1).reshape(rows.shape)
            return own[:, None] * rows + other[:, None] * turned

        return module.merge(
            lambda weights: turn(weights[module.weight]),
            lambda weights, bias: turn(weights[bias][:, None])[:, 0],
        )

    suffixes = {".road_theta": "theta", ".road_alpha": "alpha"}
    return read_modules(reader, "road", strip_prefix(tensors), layers, suffixes, change)


def _oft_size(module: Module, inputs: int, is_shared: bool) -> int:
    shape = module.parts["r"].entry.shape
    numbers = shape[-1] if shape else 0
    size = (1 + math.isqrt(1 + 8 * numbers)) // 2  # numbers = size · (size - 1) / 2
    if size * (size - 1) // 2 != numbers or inputs % size:
        raise AdapterMismatch(f"{module.name[:200]}: {list(shape)} fits no blocks of {inputs}")
    module.check({"r": (1 if is_shared else inputs // size, numbers)})
    return size


def _turn(weight: Floats, turns: Floats) -> Floats:
    """W Rᵀ for blocks R along the inputs, or one for all of them. `turns` [blocks, size, size]"""
    out, inputs = weight.shape
    cut = weight.reshape(out, -1, turns.shape[-1]).swapaxes(0, 1)  # [blocks, out, size]
    turned: Floats = cut @ turns.swapaxes(1, 2)
    return turned.swapaxes(0, 1).reshape(out, inputs)


def _butterfly(inputs: int, size: int, level: int) -> Integers:
    """The inputs in the order in which a factor's blocks take them: of every `size` · 2^level the
    even half blocks, then the odd ones."""
    width = size << level
    order = np.arange(width)
    if level:  # more than one factor needs blocks of an even size
        halves = order.reshape(-1, size // 2)
        order = np.concatenate([halves[0::2], halves[1::2]]).reshape(-1)
    return (np.arange(0, inputs, width)[:, None] + order).reshape(-1)


def _skew(numbers: Floats, size: int) -> Floats:
    """Skew-symmetric matrices of the numbers above their diagonals. [blocks, size, size]"""
    skew = np.zeros((len(numbers), size, size), np.float32)
    rows, columns = np.triu_indices(size, 1)
    skew[:, rows, columns] = numbers
    return skew - skew.swapaxes(1, 2)


def _limit(skew: Floats, limit: float | None) -> Floats:
    """Matrices shortened to a length; None: as they are."""
    if limit is None:
        return skew
    longest = np.float32(limit / math.sqrt(len(skew)))
    length = np.linalg.norm(skew, axis=(1, 2), keepdims=True)
    return np.where(length <= longest, skew, longest * (skew / length))


def _cayley(skew: Floats) -> Floats:
    """(I - Q) (I + Q)⁻¹"""
    unit = np.eye(skew.shape[-1], dtype=np.float32)
    # x (I + Q) = I - Q, solved from the right
    return np.linalg.solve((unit + skew).swapaxes(1, 2), (unit - skew).swapaxes(1, 2)).swapaxes(
        1, 2
    )


def _series(skew: Floats, terms: int) -> Floats:
    """The same as a series, cut off as PEFT does: I + 2 Q + 2 Q² + … + Qⁿ⁻¹, Q for -Q."""
    power: Floats = np.eye(skew.shape[-1], dtype=np.float32)
    total: Floats = np.broadcast_to(power, skew.shape).copy()
    last = max(terms - 1, 3) if terms > 2 else terms - 1
    for exponent in range(1, last + 1):
        power = power @ skew
        total += power * np.float32(1 if exponent == last > 1 else 2)
    return total


def _road_columns(module: Module, numbers: int, group: int) -> tuple[Floats, Floats]:
    """What every output takes of itself, and of its partner. [out] both"""
    theta: NDArray[np.float32] = module.read("theta")
    alpha: NDArray[np.float32] = module.read("alpha")
    if numbers == 4:
        (first, second) = theta.reshape(-1, 2, group).swapaxes(0, 1)
        (own, other) = alpha.reshape(-1, 2, group).swapaxes(0, 1)
        return (own * np.cos(first)).reshape(-1), (other * np.sin(second)).reshape(-1)
    if numbers == 1:  # both halves of a group have the same
        theta, alpha = (
            np.repeat(part.reshape(-1, group // 2), 2, axis=0).reshape(-1)
            for part in (theta, alpha)
        )
    return alpha * np.cos(theta), alpha * np.sin(theta)
