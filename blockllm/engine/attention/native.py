"""Attention through the built CPU kernels: reads exactly the tokens each row sees."""

from __future__ import annotations

import torch

from blockllm.engine.attention.batched import BatchedAttention
from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.kernels import native

_TILE = 64  # rows of a prompt that one task of the kernel attends


class NativeAttention:
    """See the port in `attention/__init__.py`. Where the kernels cannot be used, torch serves."""

    def __init__(self) -> None:
        self._fallback = BatchedAttention()

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
        if not native.usable(q):
            return self._fallback.attend(q, k, v, kv, bundle, rows, window)
        tables = rows.bundle_tables[bundle]
        if not rows.has_runs:
            return native.paged_decode(q, kv, tables, rows.decoding.contexts, window)
        out = torch.empty(q.shape)
        native.paged_prefill(out, q, kv, tables, rows.tiles(_TILE), window)
        members, where, contexts = rows.decoding
        if len(members):
            out[where] = native.paged_decode(q[where], kv, tables[members], contexts, window)
        return out
