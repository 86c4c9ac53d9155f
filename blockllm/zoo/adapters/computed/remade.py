"""Weights made anew of the base's own.

HiRA      W + W ∘ (B A), element by element (ICLR 2025): merged
GLoRA     W + W ∘ A + B and b + b ∘ D + E + W C, each of them of low rank, a vector, a number or
          none (arXiv 2306.07967): merged
OSF       what its k largest singular values make of W, and U diag(S) V besides (arXiv 2504.07097):
          merged
FRoD      U (S + diag(l)) Vᵀ, V common to the linears of one name, U of unit columns such that
          U diag(…) Vᵀ is W, S sparse: merged
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules, take_shared
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, Weights, check_integers, read_floats, read_integers
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_FROD_OPTIONS = COMMON | {
    "frod_dropout", "progressbar", "projection_prng_key", "regularization_alpha",
    "runtime_offload_base_weight", "save_projection", "sparse_rate",
}  # fmt: skip
_OSF_OPTIONS = COMMON | {"effective_rank", "rank_pattern", "target_svd_config"}
# lengths below which FRoD takes a column of U for nothing
_NOTHING = 1e-12


def read_hira(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's HIRA; raises a CheckpointError."""
    check_options(reader, COMMON | {"hira_dropout", "r", "rank_pattern"})

    def change(module: Module) -> Change:
        (out, inputs), rank = module.sizes, module.size_of("a")
        module.check({"a": (rank, inputs), "b": (out, rank)})

        def merge(weights: Weights) -> Floats:
            return weights[module.weight] * (1 + module.read("b") @ module.read("a"))

        return module.merge(merge)

    suffixes = {".hira_A": "a", ".hira_B": "b"}
    return read_modules(reader, "hira", strip_prefix(tensors), layers, suffixes, change)


def read_glora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's GLORA; raises a CheckpointError."""
    check_options(reader, COMMON | {"config_A_B", "config_C", "config_D_E", "r"})

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        for part in "AB":
            _check_support(module, part, (out, inputs), (out, 1))
        _check_support(module, "C", (inputs, 1), (inputs, 1))
        for part in "DE":
            _check_support(module, part, (out,), (out,))

        def merge(weights: Weights) -> Floats:
            weight = weights[module.weight]
            merged: Floats = weight * (1 + _support(module, "A")) + _support(module, "B")
            return merged

        def add(weights: Weights, place: tuple[int, str]) -> Floats:
            moved = weights[module.weight] @ np.broadcast_to(_support(module, "C"), (inputs, 1))
            old = weights[place]
            bias: Floats = old * (1 + _support(module, "D")) + _support(module, "E") + moved[:, 0]
            return bias

        return module.merge(merge, add)

    parts = [f"{part}.{name}" for part in "ABCDE" for name in ("Xd", "Xu", "X", "zeros")]
    suffixes = {f".glora_{part}": part for part in parts}
    return read_modules(reader, "glora", strip_prefix(tensors), layers, suffixes, change)


def _check_support(
    module: Module, part: str, full: tuple[int, ...], vector: tuple[int, ...]
) -> None:
    found = {
        n.removeprefix(f"{part}."): s.entry.shape for n, s in module.parts.items() if n[0] == part
    }
    rank = found.get("Xu", (0,))[0]
    forms: list[dict[str, tuple[int, ...]]] = [{"zeros": full}, {"X": vector}, {"X": (1,)}]
    forms.append({"Xd": (full[0], rank), "Xu": (rank, full[-1])})
    if found not in forms:
        raise AdapterMismatch(f"{module.name[:200]}: glora_{part} {found} fits no {list(full)}")
    for name in found:
        module.parts[f"{part}.{name}"].check_dtype()


def _support(module: Module, part: str) -> Floats:
    """One of GLoRA's supports, of a shape that broadcasts."""
    if f"{part}.Xd" in module.parts:
        product: Floats = module.read(f"{part}.Xd") @ module.read(f"{part}.Xu")
        return product
    if f"{part}.X" in module.parts:
        return module.read(f"{part}.X")
    return np.zeros(1, np.float32)


def read_osf(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's OSF; raises a CheckpointError."""
    check_options(reader, _OSF_OPTIONS)

    def change(module: Module) -> Change:
        (out, inputs), size = module.sizes, module.size_of("s")
        module.check({"u": (out, size), "s": (size,), "v": (size, inputs)})

        def merge(weights: Weights) -> Floats:
            u, s, v = np.linalg.svd(weights[module.weight], full_matrices=False)
            kept = max(len(s) - size, 0)
            high = (u[:, :kept] * s[:kept]) @ v[:kept]
            low = (module.read("u") * module.read("s")) @ module.read("v")
            merged: Floats = (high + low).astype(np.float32)
            return merged

        return module.merge(merge)

    suffixes = {f".osf_svd_params.{part.upper()}_low": part for part in "usv"}
    return read_modules(reader, "osf", strip_prefix(tensors), layers, suffixes, change)


def read_frod(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's FROD with its projections saved; raises a CheckpointError."""
    check_options(reader, _FROD_OPTIONS)
    rest = dict(tensors)
    shared = {n: s for n, s in rest.items() if n.startswith("base_model.frod_")}
    own = strip_prefix({n: s for n, s in rest.items() if n not in shared})

    def change(module: Module) -> Change:
        inputs, count = module.sizes[1], module.size_of("values")
        module.check({"values": (count,), "l": (inputs,)})
        category = _category(module.name)
        v = take_shared(dict(shared), f"frod_V.{category}", "save_projection=True")
        places = shared.get(f"base_model.frod_s_indices.{category}")
        if v.entry.shape != (inputs, inputs) or not places or places.entry.shape != (2, count):
            raise AdapterMismatch(f"{module.name[:200]}: frod_V or frod_s_indices do not fit")
        check_integers(places)

        def merge(weights: Weights) -> Floats:
            basis, middle = read_floats(v), np.diag(module.read("l"))
            np.add.at(middle, tuple(read_integers(places, inputs)), module.read("values"))
            units = _unit_factor(weights[module.weight], basis)
            return (units @ middle @ basis.T).astype(np.float32)

        return module.merge(merge)

    suffixes = {".frod_lambda_l": "l", ".frod_lambda_s_values": "values"}
    return read_modules(reader, "frod", own, layers, suffixes, change)


def _category(name: str) -> str:
    """Linears of one name share a basis: `self_attn_q_proj`, `lm_head`."""
    return "_".join(name.split(".")[-2:])


def _unit_factor(weight: Floats, basis: Floats) -> Floats:
    """U of unit columns with U diag(lengths) Vᵀ = W."""
    wide: NDArray[np.float64] = basis.astype(np.float64)
    try:
        columns = np.linalg.solve(wide, weight.T.astype(np.float64)).T
    except np.linalg.LinAlgError:
        columns = weight.astype(np.float64) @ np.linalg.pinv(wide, rcond=1e-6).T
    lengths = np.linalg.norm(columns, axis=0)
    columns[:, lengths <= _NOTHING] = 0
    units: Floats = (columns / np.maximum(lengths, _NOTHING)).astype(np.float32)
    return units
