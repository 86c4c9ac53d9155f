"""Low-rank updates whose numbers come from one small store that all linears share.

VB-LoRA   every stretch of A and B is a mixture of k vectors of a bank (arXiv 2405.15179)
    (module).vblora_logits_A [r, in / n, bank], or of the k largest their places and weights
    …_A_topk_indices [r, in / n, k] and …_A_topk_weights [r, in / n, k - 1]; B likewise [out / n, r]
Uni-LoRA  every number of A and B is one of a vector times a scale (arXiv 2506.00799)
    (module).unilora_indices_A, unilora_scales_A [r, in]; B likewise [out, r]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockllm.errors import AdapterMismatch, UnsupportedModel
from blockllm.zoo.adapters.computed.module import Change, Module
from blockllm.zoo.adapters.computed.reading import COMMON, read_modules, take_shared
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import MAX_RANK
from blockllm.zoo.adapters.plan import AdapterPlan, Layers, strip_prefix
from blockllm.zoo.arrays import Floats, read_floats, read_integers
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

_VBLORA_OPTIONS = COMMON | {
    "init_logits_std", "init_vector_bank_bound", "num_vectors", "r", "save_only_topk_weights",
    "topk", "vblora_dropout", "vector_length",
}  # fmt: skip
_UNILORA_OPTIONS = COMMON | {
    "init_theta_d_bound", "proj_seed", "r", "save_indices", "theta_d_length", "unilora_dropout",
}  # fmt: skip


def read_vblora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's VBLORA; raises a CheckpointError."""
    check_options(reader, _VBLORA_OPTIONS)
    rank, most = reader.integer("r", high=MAX_RANK), reader.integer("topk", 2, high=MAX_RANK)
    vectors, length = reader.integer("num_vectors"), reader.integer("vector_length")
    is_short = reader.boolean("save_only_topk_weights", False)
    rest = dict(tensors)
    bank = take_shared(rest, "vblora_vector_bank", "save_pretrained")
    if bank.entry.shape != (vectors, length) or most > vectors:
        raise AdapterMismatch(
            f"{reader.where}: {most} of {vectors} vectors of {length} do not fit the bank "
            f"{list(bank.entry.shape)}"
        )

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        tiles = {"A": (rank, inputs // length), "B": (out // length, rank)}
        if inputs % length or out % length:
            raise AdapterMismatch(f"{module.name[:200]}: {out} and {inputs} are no {length}s")
        for side, shape in tiles.items():
            _check_mixture(module, side, shape, most if is_short else vectors, is_short)

        def mix(side: str) -> Floats:
            weights, places = _mixture(module, side, most, vectors, is_short)
            mixed = np.zeros((*places.shape[:2], length), np.float32)
            for index in range(most):
                mixed += weights[..., index, None] * read_floats(bank)[places[..., index]]
            return mixed

        return module.low_rank(
            rank,
            lambda _: mix("A").reshape(rank, inputs),
            lambda _: mix("B").swapaxes(1, 2).reshape(out, rank),
        )

    ends = ("_topk_indices", "_topk_weights") if is_short else ("",)
    suffixes = {f".vblora_logits_{side}{end}": f"{side}{end}" for side in "AB" for end in ends}
    return read_modules(reader, "vblora", strip_prefix(rest), layers, suffixes, change)


def _check_mixture(
    module: Module, side: str, shape: tuple[int, int], width: int, is_short: bool
) -> None:
    if not is_short:
        return module.check_part(side, (*shape, width))
    module.check_places(f"{side}_topk_indices", (*shape, width))
    return module.check_part(f"{side}_topk_weights", (*shape, width - 1))


def _mixture(
    module: Module, side: str, most: int, vectors: int, is_short: bool
) -> tuple[Floats, NDArray[np.int64]]:
    """Weights and places of the mixed vectors, both […, k]."""
    if is_short:
        weights = module.read(f"{side}_topk_weights")
        last = 1 - weights.sum(-1, keepdims=True)
        places = read_integers(module.parts[f"{side}_topk_indices"], vectors)
        return np.concatenate([weights, last], axis=-1), places
    logits = module.read(side)
    places = np.argsort(-logits, axis=-1, kind="stable")[..., :most]
    chosen = np.take_along_axis(logits, places, -1)
    powers = np.exp(chosen - chosen[..., :1])  # the largest comes first
    return powers / powers.sum(-1, keepdims=True), places


def read_unilora(reader: SettingsReader, tensors: dict[str, Source], layers: Layers) -> AdapterPlan:
    """PEFT's UNILORA with its places saved; raises a CheckpointError."""
    check_options(reader, _UNILORA_OPTIONS)
    rank, rest = reader.integer("r", high=MAX_RANK), dict(tensors)
    if not any(name.endswith(".unilora_indices_A") for name in rest):
        raise UnsupportedModel(
            "the adapter was saved without the places of its numbers; save it again with "
            "save_indices=True"
        )
    store = take_shared(rest, "unilora_theta_d", "save_pretrained")
    size = reader.integer("theta_d_length", 256)
    if store.entry.shape != (size,):
        raise AdapterMismatch(f"unilora_theta_d: expected [{size}], got {list(store.entry.shape)}")

    def change(module: Module) -> Change:
        out, inputs = module.sizes
        for side, shape in {"A": (rank, inputs), "B": (out, rank)}.items():
            module.check_part(f"scales_{side}", shape)
            module.check_places(f"indices_{side}", shape)

        def take(side: str) -> Floats:
            places = read_integers(module.parts[f"indices_{side}"], size)
            return read_floats(store)[places] * module.read(f"scales_{side}")

        return module.low_rank(rank, lambda _: take("A"), lambda _: take("B"))

    names = [f"{part}_{side}" for part in ("indices", "scales") for side in "AB"]
    suffixes = {f".unilora_{name}": name for name in names}
    return read_modules(reader, "unilora", strip_prefix(rest), layers, suffixes, change)
