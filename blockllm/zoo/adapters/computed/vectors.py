"""VB-LoRA: every stretch of A and B is a mixture of k vectors of a bank (arXiv 2405.15179).

(module).vblora_logits_A [r, in / n, bank], or of the k largest their places and weights
…_A_topk_indices [r, in / n, k] and …_A_topk_weights [r, in / n, k - 1]; B likewise [out / n, r]
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blockllm.errors import AdapterMismatch
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
