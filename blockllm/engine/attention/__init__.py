"""The attention port: what a backend must do, and the choice of one.

A backend sees one decoder layer at a time: rows of many sequences, their pages, nothing else.
`plain` is the twin every other backend is tested against.
"""

from __future__ import annotations

from typing import Protocol

import torch

from blockllm.engine.attention.native import NativeAttention
from blockllm.engine.attention.plain import PlainAttention
from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.attention.sdpa import SdpaAttention
from blockllm.engine.attention.triton import TritonAttention


class Attention(Protocol):
    """Causal attention of new rows over their sequences' pages."""

    def attend(
        self,
        q: torch.Tensor,  # [rows, heads, head_dim], rotated
        k: torch.Tensor,  # [rows, kv_heads, head_dim], rotated; already on its page
        v: torch.Tensor,  # [rows, kv_heads, head_dim]
        kv: torch.Tensor,  # [pages, 2, kv_heads, page_size, head_dim], this layer's
        bundle: int,  # which of the block's page tables holds this layer
        rows: AttentionRows,
        window: int | None,
    ) -> torch.Tensor:  # [rows, heads, head_dim]
        """Row at position p sees positions `max(0, p - window + 1) .. p` of its sequence."""
        ...


def make_attention(name: str) -> Attention:
    """`plain` (reference), `gathered` (torch on any device), `native` (built CPU kernel),
    `triton` (GPU kernels)."""
    backends: dict[str, type[Attention]] = {
        "plain": PlainAttention,
        "gathered": SdpaAttention,
        "native": NativeAttention,
        "triton": TritonAttention,
    }
    return backends[name]()


__all__ = ["Attention", "AttentionRows", "make_attention"]
