"""Differences from a zoo are checked before a kernel reads where their numbers say."""

from __future__ import annotations

import pytest
import torch

from blockllm.core import CodedTarget, SparseTarget, Tensor
from blockllm.engine.kernels.coded import densify
from blockllm.engine.layers.differences import load_difference
from blockllm.errors import CorruptStore

_NAMES = {torch.uint8: "U8", torch.int32: "I32", torch.float32: "F32"}


class Store:
    """Tensors in memory as if they lay in a pack."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}

    def put(self, tensor: torch.Tensor) -> Tensor:
        name = str(len(self._tensors))
        self._tensors[name] = tensor
        return Tensor(name, _NAMES[tensor.dtype], tuple(tensor.shape), "pack", 0)

    def load(self, tensor: Tensor) -> torch.Tensor:
        return self._tensors[tensor.hash]

    def coded(self, codes: tuple[int, int], scales: tuple[int, int], bits: int) -> CodedTarget:
        zeros = torch.zeros(codes, dtype=torch.uint8)
        return CodedTarget(self.put(zeros), self.put(torch.ones(scales)), bits)

    def sparse(self, columns: list[int], ends: list[int]) -> SparseTarget:
        whole = (torch.tensor(numbers, dtype=torch.int32) for numbers in (columns, ends))
        return SparseTarget(self.put(torch.ones(len(columns))), *map(self.put, whole))


def test_what_fits_is_loaded() -> None:
    store = Store()
    coded = load_difference(store.coded((4, 8), (4, 2), 2), (4, 32), store)
    assert bool((densify(coded, 32) == -1.5).all())
    sparse = load_difference(store.sparse([31, 0], [0, 1, 1, 2]), (4, 32), store)
    assert densify(sparse, 32).nonzero().tolist() == [[1, 31], [3, 0]]


@pytest.mark.parametrize(
    ("codes", "scales", "bits"),
    [
        ((4, 8), (4, 1), 4),  # half of the inputs
        ((3, 8), (4, 1), 2),
        ((4, 8), (3, 1), 2),
        ((4, 8), (4, 5), 2),  # groups of no whole number of inputs
        ((4, 8), (4, 16), 2),  # groups that end within a byte
        ((4, 12), (4, 1), 3),
    ],
)
def test_codes_that_do_not_fit_are_refused(
    codes: tuple[int, int], scales: tuple[int, int], bits: int
) -> None:
    store = Store()
    with pytest.raises(CorruptStore, match="do not fit"):
        load_difference(store.coded(codes, scales, bits), (4, 32), store)


@pytest.mark.parametrize(
    ("columns", "ends"),
    [
        ([1, 32], [0, 1, 1, 2]),
        ([1, -1], [0, 1, 1, 2]),
        ([1, 2], [0, 2, 1, 2]),
        ([1, 2], [0, 1, 1, 3]),
        ([1, 2], [0, 1, 2]),
        ([1, 2], [-1, 1, 1, 2]),
    ],
)
def test_elements_outside_the_weight_are_refused(columns: list[int], ends: list[int]) -> None:
    store = Store()
    with pytest.raises(CorruptStore, match="do not fit"):
        load_difference(store.sparse(columns, ends), (4, 32), store)
