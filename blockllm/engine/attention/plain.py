"""The plain twin: one sequence at a time, attention written out as in the textbook."""

from __future__ import annotations

import torch

from blockllm.engine.attention.rows import AttentionRows


class PlainAttention:
    """Reference backend; see the port in `attention/__init__.py`."""

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
        out = torch.empty_like(q)
        for i, context in enumerate(rows.contexts.tolist()):
            start, stop = int(rows.starts[i]), int(rows.starts[i + 1])
            pages = rows.tensors.tables[i, bundle, : -(-context // rows.page_size)]
            keys, values = read(kv, pages, context)  # [context, kvh, d]
            groups = q.shape[1] // keys.shape[1]
            keys = keys.repeat_interleave(groups, dim=1)  # [context, heads, d]
            values = values.repeat_interleave(groups, dim=1)
            scores = torch.einsum("qhd,khd->hqk", q[start:stop], keys) * q.shape[-1] ** -0.5
            hidden = ~visible(int(rows.firsts[i]), stop - start, context, window, q.device)
            weights = scores.float().masked_fill(hidden, float("-inf")).softmax(-1)
            out[start:stop] = torch.einsum("hqk,khd->qhd", weights.to(q.dtype), values)
        return out


def read(kv: torch.Tensor, pages: torch.Tensor, context: int) -> torch.Tensor:
    """Keys and values of one sequence's first tokens. kv: [pages, 2, kv_heads, page_size, d] of one
    layer → [2, context, kv_heads, d]"""
    both = kv[pages].permute(1, 0, 3, 2, 4)  # [2, pages, page_size, kv_heads, d]
    return both.flatten(1, 2)[:, :context]


def visible(
    first: int, count: int, context: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """Which of `context` positions each of `count` rows from position `first` sees.
    [count, context] bool"""
    row = torch.arange(first, first + count, device=device)[:, None]
    column = torch.arange(context, device=device)[None, :]
    mask = column <= row
    return mask if window is None else mask & (column > row - window)
