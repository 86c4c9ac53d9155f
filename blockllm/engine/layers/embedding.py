"""The embedding shared by all models of a block, and what models with a delta add to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from blockllm.core import CodedTarget, LoraTarget, PromptTarget, RowsTarget, SparseTarget
from blockllm.engine.kernels.adapter_pool import Update
from blockllm.engine.kernels.coded import Difference, look_up
from blockllm.engine.layers.changes import Targets, low_rank, stack
from blockllm.engine.layers.differences import load_difference
from blockllm.engine.layers.rows import TokenRows, load_tokens
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import TensorSource
from blockllm.errors import UnsupportedModel

_TAKEN = LoraTarget | PromptTarget | CodedTarget | SparseTarget | RowsTarget


class Embedding:
    """Token ids → rows, plus each segment's update; virtual tokens' rows are given."""

    def __init__(self, weight: torch.Tensor, dtype: torch.dtype) -> None:
        self.weight = weight  # [vocab, hidden], of any float type
        self._dtype = dtype  # of the rows
        # by the block's adapters
        self._updates: list[Update | None] = []  # A: [rank, vocab]
        self._differences: list[tuple[Difference, ...] | None] = []
        self._rows: list[TokenRows | None] = []
        self._prompts: list[torch.Tensor | None] = []  # [virtual tokens, hidden]

    def attach(self, adapters: Sequence[Targets], load: TensorSource) -> None:
        """Take every model's changes, in the order of the block's adapters."""
        groups = [targets.get("embed", ()) for targets in adapters]
        for target in (target for group in groups for target in group):
            if not isinstance(target, _TAKEN):
                kind = type(target).__name__
                raise UnsupportedModel(f"an embedding takes no delta of the kind {kind}")
        for group in groups:
            self._updates.append(
                stack([low_rank(t, load) for t in group if isinstance(t, LoraTarget)])
            )
            coded = [t for t in group if isinstance(t, CodedTarget | SparseTarget)]
            differences = tuple(load_difference(t, self.weight.shape, load) for t in coded)
            self._differences.append(differences or None)
            rows = [t for t in group if isinstance(t, RowsTarget)]
            self._rows.append(load_tokens(rows[0], self.weight.shape, load) if rows else None)
            prompts = [load.load(t.rows) for t in group if isinstance(t, PromptTarget)]
            self._prompts.append(prompts[0] if prompts else None)

    def __call__(self, tokens: torch.Tensor, segments: Segments) -> torch.Tensor:
        """tokens: [rows] → [rows, hidden]"""
        y = F.embedding(tokens, self.weight).to(self._dtype)
        for start, stop, own in segments.own(self._rows):
            y[start:stop] = own.put(y[start:stop], tokens[start:stop])
        for start, stop, update in segments.own(self._updates):
            shrunk = update.a.t()[tokens[start:stop]]  # [rows, rank]
            y[start:stop].addmm_(shrunk, update.b, alpha=update.scale)
        for start, stop, differences in segments.own(self._differences):
            for difference in differences:
                y[start:stop] += look_up(difference, tokens[start:stop], y.shape[1])
        for rows, numbers, prompt in segments.own_virtual(self._prompts):
            y[rows] = prompt[numbers]
        return y
