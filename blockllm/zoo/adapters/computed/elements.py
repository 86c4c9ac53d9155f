"""Differences in some elements of a weight.

SHiRA         (module).shira_weight [n]   shira_indices [2, n]: rows, columns (arXiv 2406.13175)
Supertuning   (module).supertuning_values [n]   supertuning_indices [n], flat, and with `r` a
              low-rank update beside them
"""

from __future__ import annotations

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import MAX_RANK
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, Integers, read_integers
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_SUPERTUNING = {
    ".supertuning_values": "values",
    ".supertuning_indices": "indices",
    ".supertuning_lora_A.weight": "a",
    ".supertuning_lora_B.weight": "b",
}


def read_shira(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's SHIRA; raises a CheckpointError."""
    check_options(reader, COMMON | {"mask_type", "r", "random_seed"})

    def change(module: Module) -> Change:
        count = _count(module, "weight")
        _check_places(module, (2, count))

        def elements() -> tuple[Integers, Floats]:
            places = read_integers(module.parts["indices"], max(module.sizes))
            (rows, columns), (out, inputs) = places, module.sizes
            if count and (rows.max() >= out or columns.max() >= inputs):
                raise AdapterMismatch(f"{module.name[:200]}: an index lies outside {[out, inputs]}")
            return rows * inputs + columns, module.read("weight")

        return module.sparse(count, elements)

    suffixes = {".shira_weight": "weight", ".shira_indices": "indices"}
    return read_modules(reader, "shira", strip_prefix(tensors), layers, suffixes, change)


def read_supertuning(
    reader: SettingsReader, tensors: dict[str, Source], layers: Layers
) -> AdapterPlan:
    """PEFT's SUPERTUNING; raises a CheckpointError."""
    options = {"lora_alpha", "lora_dropout", "r", "save_precomputed_indices", "select_top"}
    check_options(reader, COMMON | options | {"sparsity"})
    rank = reader.integer("r", 0, low=0, high=MAX_RANK)
    scale = reader.number("lora_alpha", 0.0) / rank if rank else 1.0

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        count = _count(module, "values")
        _check_places(module, (count,))

        def elements() -> tuple[Integers, Floats]:
            return read_integers(module.parts["indices"], out * inputs), module.read("values")

        made = module.sparse(count, elements)
        if not rank:
            return made
        if made.replaced:
            raise UnsupportedModel(
                f"{module.name[:200]}: so many elements ({count}) beside a low-rank update are not "
                "supported; merge the adapter into its base"
            )
        for part, shape in {"a": (rank, inputs), "b": (out, rank)}.items():
            module.check_part(part, shape)
        return made.beside(module.low_rank(rank, module.parts["a"], module.parts["b"], scale))

    return read_modules(reader, "supertuning", strip_prefix(tensors), layers, _SUPERTUNING, change)


def _count(module: Module, part: str) -> int:
    shape = module.parts[part].entry.shape if part in module.parts else ()
    if len(shape) != 1:
        raise AdapterMismatch(f"{module.name[:200]}: expected {part} [elements], got {list(shape)}")
    module.check_part(part, shape)
    return shape[0]


def _check_places(module: Module, shape: tuple[int, ...]) -> None:
    if "indices" not in module.parts:
        raise UnsupportedModel(
            f"{module.name[:200]}: the adapter was saved without the places of its elements; save "
            "it again with them (Supertuning: save_precomputed_indices=True)"
        )
    module.check_places("indices", shape)
