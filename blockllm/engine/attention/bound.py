"""A layer's attention, bound to what a hop knows: whose rows, how they rotate, where their pages
are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockllm.engine.attention import Attention
from blockllm.engine.attention.native import NativeAttention, describe
from blockllm.engine.attention.rope import RopeTable
from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.kernels.cpu.layer import Rows


@dataclass(slots=True)
class BoundAttention:
    """Takes q, k, v of all rows, not yet rotated; puts keys and values on their pages."""

    backend: Attention
    rows: AttentionRows
    table: RopeTable
    kv: torch.Tensor  # [pages, 2, kv_heads, page_size, head_dim] of the layer
    bundle: int

    def __call__(self, fused: torch.Tensor, window: int | None) -> torch.Tensor:
        """[rows, heads + 2 kv_heads, head_dim] → [rows, heads, head_dim]"""
        kv = self.kv
        self.rows.place(fused, self.table, kv, self.bundle)
        kv_heads = kv.shape[2]
        q, kv_new = fused[:, : -2 * kv_heads], fused[:, -2 * kv_heads :]
        k, v = kv_new.chunk(2, dim=1)
        return self.backend.attend(q, k, v, kv, self.bundle, self.rows, window)

    def describe(self) -> Rows | None:
        """The rows for fused layers; None if the backend's kernels cannot be part of them."""
        if not isinstance(self.backend, NativeAttention) or not self.rows.kernels.built:
            return None
        return describe(self.rows, self.table)
