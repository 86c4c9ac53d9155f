"""Decoding rows in plain torch: gather all pages, pad to the longest, one SDPA call."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.engine.attention.rows import AttentionRows, DecodeIndex


def gathered_decode(
    q: torch.Tensor,  # [n, heads, d]
    kv: torch.Tensor,
    bundle: int,
    rows: AttentionRows,
    members: np.ndarray | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of one row per sequence over its pages. [n, heads, d]"""
    index = rows.decode.get(window)
    if index is None:
        index = rows.decode[window] = _decode_index(rows, members, window, q.dtype)
    gathered = kv[index.tables[:, bundle]]  # [n, width, 2, kv_heads, page_size, d]
    sequence, page, offset = index.padding
    # a stale NaN in a slot beyond the context would survive any mask, since 0 * NaN = NaN
    gathered[sequence, page, :, :, offset] = 0
    both = gathered.permute(2, 0, 3, 1, 4, 5)  # [2, n, kv_heads, width, page_size, d]
    keys, values = both.flatten(3, 4)  # [n, kv_heads, tokens, d]
    grouped = q.reshape(len(q), keys.shape[1], -1, q.shape[-1])  # [n, kv_heads, groups, d]
    out = F.scaled_dot_product_attention(grouped, keys, values, attn_mask=index.mask)
    return out.reshape(q.shape)


def _decode_index(
    rows: AttentionRows, members: np.ndarray | None, window: int | None, dtype: torch.dtype
) -> DecodeIndex:
    contexts = rows.contexts if members is None else rows.contexts[members]
    width = -(-int(contexts.max()) // rows.page_size)
    tables = rows.tensors.tables[:, :, :width]
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
