"""Where layers and deltas get their tensors from; `weights/loader.py` is the one that serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from blockllm.core import Tensor
from blockllm.engine.kernels.choice import Kernels
from blockllm.engine.kernels.matmul import Matmul


class TensorSource(Protocol):
    """Tensors by what they are, on the device."""

    def load(self, tensor: Tensor) -> torch.Tensor: ...
    def read(self, tensor: Tensor) -> torch.Tensor: ...  # read anew, not kept


class Loader(TensorSource, Protocol):
    """Tensors, and linears in the form in which the device multiplies."""

    kernels: Kernels  # what they are made for

    def matmul(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        scales: Sequence[Tensor | None],
    ) -> Matmul: ...


class TableLoader(Loader, Protocol):
    """Tensors, linears, and matrices whose rows are looked up."""

    dtype: torch.dtype  # what is computed in

    def table(self, tensor: Tensor) -> torch.Tensor: ...
