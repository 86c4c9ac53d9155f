"""HRA: weights reflected one after another, W Π (I - 2 u uᵀ) for unit vectors u (arXiv 2405.17484).

With `apply_GS` the vectors are first made orthogonal to each other. Either way what is taken from W
is of low rank, W P Uᵀ, with the vectors as the columns of U.
"""

from __future__ import annotations

import numpy as np

from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import MAX_RANK
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader


def read_hra(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's HRA; raises a CheckpointError."""
    check_options(reader, COMMON | {"apply_GS", "r"})
    rank = reader.integer("r", high=MAX_RANK)
    is_orthogonal = reader.boolean("apply_GS", False)

    def change(module: Module) -> Change:
        module.check({"u": (module.sizes[1], rank)})
        return module.low_rank(
            rank,
            lambda _: _vectors(module.read("u"), is_orthogonal).T,
            lambda w: -w[module.weight] @ _product(_vectors(module.read("u"), is_orthogonal)),
        )

    return read_modules(reader, "hra", strip_prefix(tensors), layers, {".hra_u": "u"}, change)


def _vectors(columns: Floats, is_orthogonal: bool) -> Floats:
    """Unit vectors of the columns, [in, rank]."""
    if not is_orthogonal:
        units: Floats = columns / np.linalg.norm(columns, axis=0)
        return units
    units = np.empty_like(columns)
    for index, column in enumerate(columns.T):
        rest = column
        for before in units.T[:index]:
            rest = rest - (before @ rest) * before
        units[:, index] = rest / np.linalg.norm(rest)
    return units


def _product(units: Floats) -> Floats:
    """P of Π (I - 2 u uᵀ) = I - P Uᵀ, column by column. [in, rank]"""
    found = np.empty_like(units)
    for index, unit in enumerate(units.T):
        found[:, index] = 2 * (unit - found[:, :index] @ (units[:, :index].T @ unit))
    return found
