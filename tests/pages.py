"""Put keys and values on pages as a hop would, without rotating them."""

from __future__ import annotations

import torch

from blockllm.engine.attention.rows import AttentionRows


def write_pages(
    rows: AttentionRows, kv: torch.Tensor, bundle: int, k: torch.Tensor, v: torch.Tensor
) -> None:
    """kv: [pages, 2, page_size, kv_heads, head_dim], one layer; k, v: [rows, kv_heads, head_dim]"""
    where = (rows.write_pages[bundle], rows.write_offsets)
    kv[:, 0].index_put_(where, k)
    kv[:, 1].index_put_(where, v)
