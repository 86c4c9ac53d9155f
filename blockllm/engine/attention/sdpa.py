"""Attention in plain torch for mixed batches, on any device: single rows (decoding) together,
prompts one by one through SDPA.

Query heads that share a KV head are laid out as extra query positions, so that keys and
values are never repeated.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.engine.attention.gathered import gathered_decode
from blockllm.engine.attention.plain import read, visible
from blockllm.engine.attention.rows import AttentionRows


class SdpaAttention:
    """See the port in `attention/__init__.py`."""

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
            return gathered_decode(q, kv, bundle, rows, None, window)
        out = q.new_empty(q.shape)
        if len(single):
            where = torch.from_numpy(rows.starts[single]).to(q.device)
            out[where] = gathered_decode(q[where], kv, bundle, rows, single, window)
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
        pages = rows.tensors.tables[member, bundle, : -(-context // rows.page_size)]
        k, v = read(kv, pages, context)  # [context, kv_heads, d]
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
