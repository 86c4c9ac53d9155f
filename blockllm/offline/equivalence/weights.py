"""How near the parameters of two layers are, streamed from the packs a few megabytes at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.core import Layer, Tensor
from blockllm.engine.weights.loader import PackStore
from blockllm.engine.weights.packs import TORCH_DTYPES
from blockllm.offline.equivalence.evidence import Similarity

_PIECE = 1 << 22  # values read at a time
_FLOATS = ("F32", "BF16", "F16")


def similarity(store: PackStore, old: Sequence[Layer], new: Sequence[Layer]) -> Similarity | None:
    """Cosine and distance of the layers' parameters; a tensor that several layers name counts
    once. None unless names and shapes agree and all values are floats.
    """
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for index, (a, b) in enumerate(zip(old, new, strict=True)):
        if a.tensors.keys() != b.tensors.keys():
            return None
        for name, tensor in a.tensors.items():
            pair = tensor, b.tensors[name]
            if tensor.shape != pair[1].shape or any(t.dtype not in _FLOATS for t in pair):
                return None
            if pair not in pairs.values():
                pairs[name if len(old) == 1 else f"{index}.{name}"] = pair
    sums = {name: _sums(store, *pair) for name, pair in pairs.items()}
    total = _finish(np.sum(list(sums.values()), axis=0))
    return Similarity(*total, tensors={name: _finish(found) for name, found in sums.items()})


def _sums(store: PackStore, old: Tensor, new: Tensor) -> NDArray[np.float64]:
    """Squares of both, their product, and squares of the difference. [4]"""
    sums = np.zeros(4)
    for a, b in zip(_pieces(store, old), _pieces(store, new), strict=True):
        difference = a - b
        sums += [float(x @ y) for x, y in ((a, a), (b, b), (a, b), (difference, difference))]
    return sums


def _finish(sums: NDArray[np.float64]) -> tuple[float, float]:
    """Cosine and relative distance."""
    old, new, product, difference = (float(value) for value in sums)
    if old == 0 or new == 0:  # all zeros, as biases may be: equal, or nothing in common
        return (1.0, 0.0) if old == new else (0.0, 1.0)
    return product / math.sqrt(old * new), math.sqrt(difference / old)


def _pieces(store: PackStore, tensor: Tensor) -> Iterator[torch.Tensor]:
    """The tensor's values in order. [up to _PIECE] fp64"""
    # copy-on-write: torch wants writable memory, the file stays as it is
    mapped = np.memmap(store.pack_path(tensor.pack), np.uint8, "c", tensor.offset, (tensor.nbytes,))
    flat = torch.from_numpy(mapped).view(TORCH_DTYPES[tensor.dtype])
    for start in range(0, len(flat), _PIECE):
        yield flat[start : start + _PIECE].double()
