"""Attention for mixed batches: single rows (decoding) together, prompts one by one.

Prompts go through torch's SDPA; how single rows are computed is the choice of the backend.
Query heads that share a KV head are laid out as extra query positions, so that keys and
values are never repeated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.engine.attention.plain import visible
from blockllm.engine.attention.rows import AttentionRows

# (q of single rows, kv, bundle, rows, which members they are or None for all, window)
Decode = Callable[
    [torch.Tensor, torch.Tensor, int, AttentionRows, np.ndarray | None, int | None], torch.Tensor
]


class BatchedAttention:
    """See the port in `attention/__init__.py`."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

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
        single = np.flatnonzero(rows.counts == 1)
        if len(single) == len(rows.counts):
            return self._decode(q, kv, bundle, rows, None, window)
        out = q.new_empty(q.shape)
        if len(single):
            where = torch.from_numpy(rows.starts[single]).to(q.device)
            out[where] = self._decode(q[where], kv, bundle, rows, single, window)
        for i in np.flatnonzero(rows.counts > 1).tolist():
            part = slice(int(rows.starts[i]), int(rows.starts[i + 1]))
            out[part] = _prefill(q[part], k[part], v[part], kv, bundle, rows, i, window)
        return out


def _prefill(
    q: torch.Tensor,  # [n, heads, d]
    k: torch.Tensor,
    v: torch.Tensor,
    kv: torch.Tensor,
    bundle: int,
    rows: AttentionRows,
    member: int,
    window: int | None,
) -> torch.Tensor:
    count, first = len(q), int(rows.firsts[member])
    context = first + count
    if first:
        pages = rows.tables[member, bundle, : -(-context // rows.page_size)]
        k, v = kv[pages].transpose(0, 1).flatten(1, 2)[:, :context]  # [context, kv_heads, d]
    kv_heads = k.shape[1]
    groups = q.shape[1] // kv_heads
    mask = rows.prompts.get((member, window))
    if mask is None:
        mask = visible(first, count, context, window, q.device).repeat(groups, 1)
        rows.prompts[member, window] = mask  # [groups * n, context]
    grouped = q.reshape(count, kv_heads, groups, -1).permute(1, 2, 0, 3)  # [kvh, groups, n, d]
    out = F.scaled_dot_product_attention(
        grouped.reshape(1, kv_heads, groups * count, -1),
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
    )  # [1, kv_heads, groups * n, d]
    return out.view(kv_heads, groups, count, -1).permute(2, 0, 1, 3).reshape(q.shape)
