"""A layer's attention, bound to what a hop knows: whose rows, how they rotate, where their pages
are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockllm.engine.attention import Attention
from blockllm.engine.attention.native import NativeAttention, kv_access
from blockllm.engine.attention.rope import RopeTable
from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.kernels.cpu.structs import KVAccess


@dataclass(slots=True)
class BoundAttention:
    """Takes q, k, v of all rows [rows, heads + 2 kv_heads, head_dim]."""

    backend: Attention
    rows: AttentionRows
    table: RopeTable
    kv: torch.Tensor  # [pages, 2, kv_heads, page_size, head_dim] of the layer
    bundle: int

    def write(self, fused: torch.Tensor) -> None:
        """Rotate queries and keys in place; put keys and values on their pages."""
        self.rows.place(fused, self.table, self.kv, self.bundle)

    def attend(self, fused: torch.Tensor, window: int | None) -> torch.Tensor:
        """Of what was written → [rows, heads, head_dim]"""
        kv_heads = self.kv.shape[2]
        q, kv_new = fused[:, : -2 * kv_heads], fused[:, -2 * kv_heads :]
        k, v = kv_new.chunk(2, dim=1)
        return self.backend.attend(q, k, v, self.kv, self.bundle, self.rows, window)

    def access(self) -> KVAccess | None:
        """Where native programs find the rows' KV; None if the backend's kernels cannot be part of
        them."""
        if not isinstance(self.backend, NativeAttention) or not self.rows.kernels.built:
            return None
        return kv_access(self.rows, self.table)
