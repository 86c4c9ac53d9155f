"""Attention through the built CPU kernels: reads exactly the tokens each row sees."""

from __future__ import annotations

import torch

from blockllm.engine.attention.batched import BatchedAttention
from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.kernels import native
from blockllm.engine.kernels.layer import Rows
from blockllm.engine.models.rope import RopeTable

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


def describe(rows: AttentionRows, table: RopeTable) -> Rows:
    """A hop's rows as fused layers take them, made once for all layers that rotate alike."""
    known = rows.described.get(id(table))
    if known is None:
        tiles = rows.tiles(_TILE) if rows.has_runs else None
        kv = rows.kv
        described = Rows(
            kv.data_ptr(), rows.page_size, kv.stride(0), kv.stride(1), kv.stride(2),
            kv.shape[1], rows.first_bundle,
            table.cos.data_ptr(), table.sin.data_ptr(),
            rows.write_pages.data_ptr(), rows.write_offsets.data_ptr(),
            rows.tables.data_ptr(), rows.tables.shape[1], rows.tables.shape[2],
            native.address(tiles), 0 if tiles is None else len(tiles),
            *(each.data_ptr() for each in rows.decoding), len(rows.decoding.members),
        )  # fmt: skip
        known = rows.described[id(table)] = described, (table, tiles, rows.decoding)
    return known[0]
