"""Batched attention in plain torch: gather pages, then one SDPA call for all single rows.

Sequences with one row (decoding) are padded to the longest of them and run as one batch;
sequences with several rows (prompts) run one by one. Query heads that share a KV head are
laid out as extra query positions, so that keys and values are never repeated.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.engine.attention.plain import visible
from blockllm.engine.attention.rows import AttentionRows, DecodeIndex


class GatheredAttention:
    """Default backend; see the port in `attention/__init__.py`."""

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
            return _decode(q, kv, bundle, rows, None, window)
        out = torch.empty_like(q)
        if len(single):
            where = torch.from_numpy(rows.starts[single]).to(q.device)
            out[where] = _decode(q[where], kv, bundle, rows, single, window)
        for i in np.flatnonzero(rows.counts > 1).tolist():
            part = slice(int(rows.starts[i]), int(rows.starts[i + 1]))
            out[part] = _prefill(q[part], k[part], v[part], kv, bundle, rows, i, window)
        return out


def _decode(
    q: torch.Tensor,  # [n, heads, d]
    kv: torch.Tensor,
    bundle: int,
    rows: AttentionRows,
    members: np.ndarray | None,
    window: int | None,
) -> torch.Tensor:
    index = rows.decode.get(window)
    if index is None:
        index = rows.decode[window] = _decode_index(rows, members, window, q.dtype)
    gathered = kv[index.tables[:, bundle]]  # [n, width, 2, page_size, kv_heads, d]
    sequence, page, offset = index.padding
    # a stale NaN in a slot that nobody reads would survive any mask, since 0 * NaN = NaN
    gathered[sequence, page, :, offset] = 0
    keys = gathered[:, :, 0].flatten(1, 2).transpose(1, 2)  # [n, kv_heads, tokens, d]
    values = gathered[:, :, 1].flatten(1, 2).transpose(1, 2)
    grouped = q.view(len(q), keys.shape[1], -1, q.shape[-1])  # [n, kv_heads, groups, d]
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=index.mask)
    return out.reshape(q.shape)


def _decode_index(
    rows: AttentionRows, members: np.ndarray | None, window: int | None, dtype: torch.dtype
) -> DecodeIndex:
    contexts = rows.contexts if members is None else rows.contexts[members]
    width = -(-int(contexts.max()) // rows.page_size)
    tables = rows.tables[:, :, :width]
    if members is not None:
        tables = tables[torch.from_numpy(members).to(rows.device)]
    last = torch.from_numpy(contexts).to(rows.device)[:, None] - 1  # [n, 1]
    column = torch.arange(width * rows.page_size, device=rows.device)[None, :]
    seen = column <= last  # [n, tokens]
    sequence, token = (~seen).nonzero(as_tuple=True)
    if window is not None:
        seen &= column > last - window
    mask = torch.zeros(seen.shape, dtype=dtype, device=rows.device)
    mask.masked_fill_(~seen, float("-inf"))
    padding = (sequence, token // rows.page_size, token % rows.page_size)
    return DecodeIndex(tables, mask[:, None, None, :], padding)


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
    grouped = q.view(count, kv_heads, groups, -1).permute(1, 2, 0, 3)  # [kvh, groups, n, d]
    out = F.scaled_dot_product_attention(
        grouped.reshape(1, kv_heads, groups * count, -1),
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
    )  # [1, kv_heads, groups * n, d]
    return out.view(kv_heads, groups, count, -1).permute(2, 0, 1, 3).reshape(q.shape)
