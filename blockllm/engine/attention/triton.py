"""Attention through the Triton kernels: one launch for single rows, one for runs of rows."""

from __future__ import annotations

import torch

from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.attention.sdpa import SdpaAttention


class TritonAttention:
    """See the port in `attention/__init__.py`; where the kernels cannot be used, torch."""

    def __init__(self) -> None:
        self._fallback = SdpaAttention()

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        kv: torch.Tensor,
        bundle: int,
        rows: AttentionRows,
        window: int | None,
    ) -> torch.Tensor:
        if not rows.kernels.triton(q):
            return self._fallback.attend(q, k, v, kv, bundle, rows, window)
        from blockllm.engine.kernels.triton.decode import paged_decode
        from blockllm.engine.kernels.triton.prefill import paged_prefill, tile_rows

        out = q.new_empty(q.shape)  # contiguous, whatever q is a part of
        tables = rows.bundle_tables[bundle]
        visible, singles = rows.tensors.visible, rows.tensors.singles
        if len(singles):
            paged_decode(q, kv, tables, visible, singles, window, out)
        if rows.has_runs:
            size = tile_rows(q.dtype, q.shape[2], q.shape[1] // kv.shape[2])
            paged_prefill(q, kv, tables, rows.tiles(size), window, out)
        return out
