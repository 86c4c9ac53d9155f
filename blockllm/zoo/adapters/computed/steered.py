"""Low-rank updates of which one factor is computed from the base's weight, and biases.

DEFT     W - Q Pᵀ W + scale · Q R, Q and P of one matrix by `relu` or `qr`
PEANuT   W + scale · B h(A W)ᵀ, h a small network over the columns of W (arXiv 2410.01870)
BEFT     b + an own bias
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from blockllm.errors import UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import MAX_RANK
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, Weights
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_DEFT_OPTIONS = COMMON | {
    "alpha", "decomposition_method", "deft_dropout", "init_scale", "para", "r",
}  # fmt: skip
_MOST_LAYERS = 64  # of PEANuT's network


def _sigmoid(x: Floats) -> Floats:
    found: Floats = np.reciprocal(1 + np.exp(-x))
    return found


_ACTIVATIONS: dict[str, Callable[[Floats], Floats]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}


def read_beft(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's BEFT; raises a CheckpointError."""
    check_options(reader, COMMON)

    def change(module: Module) -> Change:
        module.check({"bias": (1, module.sizes[0])})

        def bias(weights: Weights) -> Floats:
            own: Floats = module.read("bias")[0]
            return own if module.bias is None else weights[module.bias] + own

        return module.set_bias(bias)

    return read_modules(
        reader, "beft", strip_prefix(tensors), layers, {".beft_bias": "bias"}, change
    )


def read_deft(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's DEFT; raises a CheckpointError."""
    check_options(reader, _DEFT_OPTIONS)
    most, only_removes = reader.integer("r", high=MAX_RANK), reader.boolean("para", False)
    alpha, method = reader.number("alpha", 0.0), reader.text("decomposition_method", "relu")
    if method not in ("relu", "qr"):
        raise UnsupportedModel(
            f"{reader.where}: decomposition_method {method[:40]!r} is not supported (relu, qr)"
        )

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        rank = min(most, out)
        module.check({"p": (out, rank)} | ({} if only_removes else {"r": (rank, inputs)}))
        scale = np.float32(alpha / rank if alpha else 1)

        def down(weights: Weights) -> Floats:
            taken = _sides(module.read("p"), method)[1].T @ weights[module.weight]
            found: Floats = -taken if only_removes else scale * module.read("r") - taken
            return found

        return module.low_rank(rank, down, lambda _: _sides(module.read("p"), method)[0])

    suffixes = {".deft_P": "p", ".deft_R": "r"}
    return read_modules(reader, "deft", strip_prefix(tensors), layers, suffixes, change)


def read_peanut(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's PEANUT; raises a CheckpointError."""
    check_options(reader, COMMON | {"act_fn", "depth", "r", "scaling"})
    rank, depth = reader.integer("r", high=MAX_RANK), reader.integer("depth", 0, 0, _MOST_LAYERS)
    scale, name = reader.number("scaling", 1.0, low=-math.inf), reader.text("act_fn", "relu")
    if name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise UnsupportedModel(
            f"{reader.where}: act_fn {name[:40]!r} is not supported (supported: {known})"
        )
    small = [f"{part}.{index}" for part in ("encoders", "decoders") for index in range(depth)]

    def change(module: Module) -> Change:
        out = module.place.rows
        module.check({"A": (rank, out), "B": (out, rank), **dict.fromkeys(small, (rank, rank))})
        activate = _ACTIVATIONS[name]

        def down(weights: Weights) -> Floats:
            hidden = activate(module.read("A") @ weights[module.weight])  # [rank, in]
            stack = []
            for index in range(depth):
                stack.append(hidden)
                hidden = activate(module.read(f"encoders.{index}") @ hidden)
            for index in range(depth):
                hidden = activate(module.read(f"decoders.{index}") @ hidden) + stack.pop()
            return hidden

        return module.low_rank(rank, down, module.parts["B"], scale)

    suffixes = {f".peanut_{part}.weight": part for part in ("A", "B", *small)}
    return read_modules(reader, "peanut", strip_prefix(tensors), layers, suffixes, change)


def _sides(matrix: Floats, method: str) -> tuple[Floats, Floats]:
    """Q and P of DEFT's projection Q Pᵀ. [out, rank] both"""
    if method == "relu":
        return matrix, np.maximum(matrix, np.float32(0))
    orthogonal: Floats = np.linalg.qr(matrix)[0]
    return orthogonal, orthogonal
