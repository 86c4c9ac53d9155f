"""Compressed differences of weights as kernels take them, checked against the weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import CodedTarget, SparseTarget
from blockllm.engine.kernels.coded import Coded, Difference, Sparse
from blockllm.engine.weights.tensors import TensorSource
from blockllm.errors import CorruptStore


def load_difference(
    target: CodedTarget | SparseTarget, shape: Sequence[int], load: TensorSource
) -> Difference:
    """The difference from a weight of the shape [out, in]. Raises CorruptStore if it does not fit:
    kernels read where its numbers say."""
    out, inputs = shape
    if isinstance(target, CodedTarget):
        coded = Coded(load.load(target.codes), load.load(target.scales), target.bits)
        fits = target.bits in (1, 2, 4) and coded.codes.dtype is torch.uint8
        fits = fits and target.codes.shape == (out, inputs * target.bits // 8)
        fits = fits and inputs * target.bits % 8 == 0 and target.scales.shape[0] == out
        groups = target.scales.shape[-1]
        if not fits or not groups or inputs % groups or inputs // groups * target.bits % 8:
            raise CorruptStore(f"codes of {target.bits} bits do not fit a weight [{out}, {inputs}]")
        return coded
    sparse = Sparse(*(load.load(t) for t in (target.values, target.columns, target.ends)))
    sizes = torch.diff(sparse.ends, prepend=sparse.ends.new_zeros(1))
    fits = target.ends.shape == (out,) and sparse.ends.dtype is torch.int32
    fits = fits and target.values.shape == target.columns.shape == (int(sparse.ends[-1]),)
    fits = fits and sparse.columns.dtype is torch.int32 and bool((sizes >= 0).all())
    if not fits or not bool(((sparse.columns >= 0) & (sparse.columns < inputs)).all()):
        raise CorruptStore(f"sparse elements do not fit a weight [{out}, {inputs}]")
    return sparse
