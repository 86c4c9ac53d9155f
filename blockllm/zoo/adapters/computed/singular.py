"""Differences kept like a singular value decomposition, B M A with a small matrix M between.

AdaLoRA (arXiv 2303.10512)    M = diag(E)      (module).lora_A [r, in]   lora_B [out, r]   lora_E
    r is what the allocation left of a module's first rank; the scale goes by the first
DeLoRA (arXiv 2503.18225)     M of lengths     (module).delora_A, delora_B, delora_lambda, w_norm
TinyLoRA (arXiv 2602.04118)   M = Σ v[i] P[i]  (module).tinylora_A, tinylora_B, tinylora_P [u, r, r]
    v is common to neighbouring modules, as many as `weight_tying` says
"""

from __future__ import annotations

import numpy as np

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.order import in_order
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, read_floats
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_ADALORA = {".lora_A": "a", ".lora_B": "b", ".lora_E": "e"}
_ADALORA_OPTIONS = COMMON | {
    "beta1", "beta2", "deltaT", "init_lora_weights", "init_r", "lora_alpha", "lora_dropout",
    "megatron_core", "orth_reg_weight", "qalora_group_size", "r", "rank_pattern", "runtime_config",
    "target_r", "tfinal", "tinit", "total_step",
}  # fmt: skip
_DELORA_OPTIONS = COMMON | {
    "delora_lambda", "lambda_pattern", "module_dropout", "r", "rank_pattern",
}  # fmt: skip
_TINYLORA_OPTIONS = COMMON | {
    "init_v_bound", "projection_seed", "r", "save_projection", "tinylora_dropout", "u",
    "weight_tying",
}  # fmt: skip
# what peft adds to a rank before it divides by it, and the shortest vector that it divides by
_EPSILON, _SHORTEST = 1e-5, 1e-4


def read_adalora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's ADALORA; raises a CheckpointError."""
    check_options(reader, _ADALORA_OPTIONS)
    first = reader.integer("init_r", 12)
    alpha = reader.number("lora_alpha", 8)

    def change(module: Module) -> Change:
        (out, inputs), rank = module.sizes, module.size_of("e")
        if rank > first:
            raise AdapterMismatch(f"{module.name[:200]}: rank {rank}, but init_r is {first}")
        module.check({"a": (rank, inputs), "b": (out, rank), "e": (rank, 1)})
        scale = (alpha or rank) / (first + _EPSILON)
        return module.low_rank(
            rank, lambda _: module.read("a") * module.read("e"), module.parts["b"], scale
        )

    return read_modules(reader, "adalora", strip_prefix(tensors), layers, _ADALORA, change)


def read_delora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's DELORA; raises a CheckpointError."""
    check_options(reader, _DELORA_OPTIONS)

    def change(module: Module) -> Change:
        (out, inputs), rank = module.sizes, module.size_of("A")
        shapes = {"A": (rank, inputs), "B": (out, rank)}
        module.check({**shapes, "lambda": (1,), "w_norm": (inputs,)})

        def up(_: object) -> Floats:
            lengths = _length(module.read("A"), 1) * _length(module.read("B"), 0)
            scaled: Floats = module.read("B") * (module.read("lambda") / rank / lengths)
            return scaled

        return module.low_rank(rank, lambda _: module.read("A") * module.read("w_norm"), up)

    suffixes = {f".delora_{part}": part for part in ("A", "B", "lambda", "w_norm")}
    return read_modules(reader, "delora", strip_prefix(tensors), layers, suffixes, change)


def read_tinylora(
    reader: SettingsReader, tensors: dict[str, Source], layers: Layers
) -> AdapterPlan:
    """PEFT's TINYLORA with its projections saved; raises a CheckpointError."""
    check_options(reader, _TINYLORA_OPTIONS)
    count = reader.integer("u", 64)
    if not any(name.endswith(".tinylora_P") for name in tensors):
        raise UnsupportedModel(
            "the adapter was saved without tinylora_P, which torch drew from a seed; save it again "
            "with save_projection=True"
        )
    prefix = "base_model.tinylora_v."
    vectors = {n.removeprefix(prefix): s for n, s in tensors.items() if n.startswith(prefix)}
    named = strip_prefix({n: s for n, s in tensors.items() if not n.startswith(prefix)})
    groups = _groups(named, layers, reader.number("weight_tying", 0.0))

    def change(module: Module) -> Change:
        (out, inputs), rank = module.sizes, module.size_of("A")
        module.check({"A": (rank, inputs), "B": (out, rank), "P": (count, rank, rank)})
        vector = vectors.get(groups[module.name])
        if vector is None or vector.entry.shape != (count,):
            raise AdapterMismatch(f"{prefix}{groups[module.name]}: expected [{count}] numbers")
        vector.check_dtype()
        return module.low_rank(
            rank,
            module.parts["A"],
            lambda _: module.read("B") @ np.tensordot(read_floats(vector), module.read("P"), 1),
        )

    suffixes = {f".tinylora_{part}": part for part in "ABP"}
    return read_modules(reader, "tinylora", named, layers, suffixes, change)


def _length(matrix: Floats, axis: int) -> Floats:
    found: Floats = np.linalg.norm(matrix, axis=axis).clip(min=_SHORTEST)
    return found


def _groups(tensors: dict[str, Source], layers: Layers, tying: float) -> dict[str, str]:
    """The vector of each module: modules in the model's order in groups of equal size."""
    names = {name.removesuffix(".tinylora_A") for name in tensors if name.endswith(".tinylora_A")}
    count = max(1, round(len(names) * (1 - tying)))
    size = max(1, len(names) // count)
    ordered = sorted(names, key=lambda name: in_order(name, layers))
    return {name: str(min(index // size, count - 1)) for index, name in enumerate(ordered)}
