"""Differences made of equal or independent tiles.

MiSS      every r inputs share one matrix D [r, out]: W + Dᵀ D₁, D₁ picking input i of each r
          (arXiv 2409.15371); `mini`: D repeated along the outputs; `bat`: W + W D + D by blocks
GraLoRA   k x k blocks, each of rank r / k, and a low-rank update of the whole (arXiv 2505.20355)
C3A       circulant blocks: element [m b + i, n b + j] is kernel[m, n, (j - i) mod b] / inputs
          (arXiv 2407.19342)
"""

from __future__ import annotations

import numpy as np

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import MAX_RANK
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, Weights
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_GRALORA = {
    ".gralora_A": "a",
    ".gralora_B": "b",
    ".gralora_A_general.weight": "whole_a",
    ".gralora_B_general.weight": "whole_b",
}


def read_miss(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's MISS, and BONE as it was called before; raises a CheckpointError."""
    check_options(reader, COMMON | {"bone_dropout", "mini_r", "miss_dropout", "r"})
    rank = reader.integer("r", high=MAX_RANK)
    form = reader.text("init_weights") if reader.is_text("init_weights") else ""

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        if form == "bat":
            module.check({"block": (out // rank, rank, rank)})
            return module.merge(lambda weights: _bat(weights[module.weight], module.read("block")))
        width = reader.integer("mini_r", 1) if form == "mini" else out
        if out % width:
            raise AdapterMismatch(f"{module.name[:200]}: {out} outputs, mini_r is {width}")
        module.check({"block": (rank, width)})
        return module.low_rank(
            rank,
            lambda _: np.equal.outer(np.arange(rank), np.arange(inputs) % rank).astype(np.float32),
            lambda _: np.tile(module.read("block"), out // width).T,
        )

    suffixes = {".miss_block": "block", ".bone_block": "block"}
    return read_modules(reader, "miss", strip_prefix(tensors), layers, suffixes, change)


def read_gralora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's GRALORA; raises a CheckpointError."""
    check_options(reader, COMMON | {"alpha", "gralora_dropout", "gralora_k", "hybrid_r", "r"})
    rank, whole = reader.integer("r", high=MAX_RANK), reader.integer("hybrid_r", 0, low=0)
    tiles = reader.integer("gralora_k", 2)
    scale = reader.number("alpha", 64) / (rank + whole)
    if rank % tiles:
        raise AdapterMismatch(f"{reader.where}: r {rank} is no multiple of gralora_k {tiles}")

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        shapes: dict[str, tuple[int, ...]] = {
            "a": (tiles, inputs // tiles, rank),
            "b": (tiles, rank, out // tiles),
        }
        if whole:
            shapes |= {"whole_a": (whole, inputs), "whole_b": (out, whole)}
        module.check(shapes)
        if inputs % tiles or out % tiles:
            raise AdapterMismatch(f"{module.name[:200]}: not divisible by gralora_k {tiles}")
        return module.low_rank(
            tiles * rank + whole,
            lambda _: _gralora_inputs(module, whole),
            lambda _: _gralora_outputs(module, whole),
            scale,
            difference=lambda _: _gralora(module, whole),
        )

    return read_modules(reader, "gralora", strip_prefix(tensors), layers, _GRALORA, change)


def read_c3a(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's C3A; raises a CheckpointError."""
    check_options(reader, COMMON | {"block_size", "block_size_pattern"})

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        shape = module.parts["kernel"].entry.shape
        size = shape[-1] if shape else 0
        if size == 0 or out % size or inputs % size:
            raise AdapterMismatch(
                f"{module.name[:200]}: {list(shape)} are no blocks of {out, inputs}"
            )
        module.check({"kernel": (out // size, inputs // size, size)})

        def merge(weights: Weights) -> Floats:
            places = np.arange(size)
            turned = module.read("kernel")[:, :, (places - places[:, None]) % size]  # [m, n, b, b]
            step: Floats = turned.swapaxes(1, 2).reshape(out, inputs) / np.float32(inputs)
            return weights[module.weight] + step

        return module.merge(merge)

    return read_modules(
        reader, "c3a", strip_prefix(tensors), layers, {".c3a_kernel": "kernel"}, change
    )


def _bat(weight: Floats, blocks: Floats) -> Floats:
    """W + W D + D, with a D [r, r] for every r outputs and W cut into blocks of r x r."""
    rank = blocks.shape[-1]
    if weight.shape[1] % rank:
        raise AdapterMismatch(f"{weight.shape[1]} inputs are no blocks of {rank}")
    cut = weight.reshape(len(blocks), rank, -1, rank)  # [out blocks, r, in blocks, r]
    product = (cut.reshape(len(blocks), -1, rank) @ blocks).reshape(cut.shape)
    changed: Floats = cut + product + blocks[:, :, None]
    return changed.reshape(weight.shape)


def _gralora(module: Module, whole: int) -> Floats:
    """The difference [out, in], block by block: what the factors below multiply to."""
    a, b = module.read("a"), module.read("b")
    tiles, size, rank = a.shape
    downs = a.reshape(tiles, size, tiles, rank // tiles).transpose(2, 0, 3, 1)
    ups = b.reshape(tiles, tiles, rank // tiles, -1).swapaxes(2, 3)
    blocks: Floats = (ups @ downs).swapaxes(
        1, 2
    )  # [out blocks, out / tiles, in blocks, in / tiles]
    found = blocks.reshape(module.sizes)
    return found + module.read("whole_b") @ module.read("whole_a") if whole else found


def _gralora_inputs(module: Module, whole: int) -> Floats:
    """Rows by (block of outputs, block of inputs, rank); each reads one block of inputs."""
    a = module.read("a")  # [tiles, in / tiles, rank]
    tiles, size, rank = a.shape
    parts = a.reshape(tiles, size, tiles, rank // tiles).transpose(2, 0, 3, 1)
    rows = np.zeros((tiles, tiles, rank // tiles, tiles, size), np.float32)
    for tile in range(tiles):
        rows[:, tile, :, tile] = parts[:, tile]
    flat = rows.reshape(tiles * rank, -1)
    return np.concatenate([flat, module.read("whole_a")]) if whole else flat


def _gralora_outputs(module: Module, whole: int) -> Floats:
    """Columns by (block of outputs, block of inputs, rank); each adds to one block of outputs."""
    b = module.read("b")  # [tiles, rank, out / tiles]
    tiles, rank, size = b.shape
    columns = np.zeros((tiles, size, tiles, rank), np.float32)
    for tile in range(tiles):
        columns[tile, :, tile] = b[tile].T
    flat = columns.reshape(tiles * size, -1)
    return np.concatenate([flat, module.read("whole_b")], axis=1) if whole else flat
