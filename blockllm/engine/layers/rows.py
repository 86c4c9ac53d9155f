"""Rows of a weight that one model has instead of the base's: looked up, or multiplied by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from blockllm.core import RowsTarget
from blockllm.engine.kernels.matmul import Matmul
from blockllm.engine.weights.tensors import Loader, TensorSource
from blockllm.errors import CorruptStore


class TokenRows(NamedTuple):
    """Rows of an embedding."""

    tokens: torch.Tensor  # [n] int64, ascending
    rows: torch.Tensor  # [n, hidden]

    def put(self, y: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """y: [rows, hidden] of `tokens` [rows] → the same with own rows where there are some.
        The device is not waited for."""
        places = torch.searchsorted(self.tokens, tokens).clamp_(max=len(self.tokens) - 1)
        found = self.tokens[places] == tokens  # [rows]
        return torch.where(found[:, None], self.rows[places], y)


class OwnOutputs(NamedTuple):
    """Rows of a linear's weight, each of which makes one output."""

    outputs: torch.Tensor  # [n] int64
    multiply: Matmul  # [rows, in] → [rows, n]


def load_tokens(target: RowsTarget, shape: Sequence[int], load: TensorSource) -> TokenRows:
    """The target of an embedding [vocab, hidden]. Raises CorruptStore if it does not fit."""
    _check(target, shape)
    rows = load.load(target.rows)
    tokens, order = torch.tensor(target.tokens, device=rows.device).sort()
    return TokenRows(tokens, rows[order])


def load_outputs(target: RowsTarget, shape: Sequence[int], load: Loader) -> OwnOutputs:
    """The target of a linear [out, in], multiplied as its weight is: sums run in the same order.
    Raises CorruptStore if it does not fit."""
    _check(target, shape)
    device = load.load(target.rows).device
    multiply = load.matmul([target.rows], [None], [None])
    return OwnOutputs(torch.tensor(target.tokens, device=device), multiply)


def _check(target: RowsTarget, shape: Sequence[int]) -> None:
    rows, columns = shape
    fits = target.rows.shape == (len(target.tokens), columns) and len(target.tokens) > 0
    if not fits or not all(0 <= token < rows for token in target.tokens):
        raise CorruptStore(f"rows of tokens do not fit a weight [{rows}, {columns}]")
