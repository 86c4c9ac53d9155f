"""Where the rows of one hop read and write KV: index arrays for one block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from blockllm.engine.batch import Hop, Ints
from blockllm.engine.kernels import native
from blockllm.engine.kernels.plain import rotate
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.models.rope import RopeTable


class DecodeIndex(NamedTuple):
    """What the rows of decoding sequences read, padded to the longest context."""

    tables: torch.Tensor  # [n, bundles, width] pages
    mask: torch.Tensor  # [n, 1, 1, tokens] added to the scores
    padding: tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # sequence, page index, offset


class AttentionRows:
    """Index tensors for one hop at one block, made once and used by all its layers."""

    def __init__(self, hop: Hop, cache: KVCache, first_bundle: int, bundles: int):
        turn, device = hop.turn, cache.tensor.device
        self.device = device
        self.starts = hop.starts  # [k + 1] first row of each sequence
        self.counts: Ints = turn.counts[hop.members]  # [k] rows of each sequence
        self.firsts: Ints = turn.firsts[hop.members]  # [k] position of its first row
        self.contexts: Ints = self.firsts + self.counts  # [k] tokens visible to its last row
        slots = turn.slots[hop.members]  # [k]
        width = -(-int(self.contexts.max()) // cache.page_size)
        tables = cache.tables[slots, first_bundle : first_bundle + bundles, :width]
        tables = np.ascontiguousarray(tables)  # kernels walk a row page by page
        self.tables = torch.from_numpy(tables).to(device)  # [k, bundles, width]
        self.page_size = cache.page_size
        self._set_writes(hop, tables, cache.adopted[slots, first_bundle], device)
        # filled by the batched backend, shared by the block's layers
        self.decode: dict[int | None, DecodeIndex] = {}  # by window
        self.prompts: dict[tuple[int, int | None], torch.Tensor] = {}  # by (member, window)

    def _set_writes(
        self, hop: Hop, tables: np.ndarray, adopted: np.ndarray, device: torch.device
    ) -> None:
        positions = hop.turn.positions[hop.rows]  # [rows]
        owner = np.repeat(np.arange(len(self.counts)), self.counts)  # [rows]
        pages = tables[owner, :, positions // self.page_size].T.astype(np.int64, order="C")
        pages[:, positions < adopted[owner]] = 0  # shared pages are never written again
        self.write_pages = torch.from_numpy(pages).to(device)  # [bundles, rows]
        self.write_offsets = torch.from_numpy(positions % self.page_size).to(device)  # [rows]

    def place(self, fused: torch.Tensor, table: RopeTable, kv: torch.Tensor, bundle: int) -> None:
        """Rotate the queries and keys of `fused` [rows, heads + 2 kv_heads, d] in place and put
        keys and values on their pages. kv: [pages, 2, page_size, kv_heads, d] of one layer"""
        if native.usable(fused):
            where = (self.write_pages[bundle], self.write_offsets)
            native.rotate_and_write(fused, *table, kv, *where)
            return
        kv_heads = kv.shape[3]
        turned = fused[:, : fused.shape[1] - kv_heads]
        turned.copy_(rotate(turned, *table))
        k, v = fused[:, -2 * kv_heads : -kv_heads], fused[:, -kv_heads:]
        self.write(kv, bundle, k, v)

    def write(self, kv: torch.Tensor, bundle: int, k: torch.Tensor, v: torch.Tensor) -> None:
        """Put the rows' keys and values on their pages.

        kv: [pages, 2, page_size, kv_heads, head_dim] of one layer; k, v: [rows, kv_heads, head_dim]
        """
        where = (self.write_pages[bundle], self.write_offsets)
        kv[:, 0].index_put_(where, k)
        kv[:, 1].index_put_(where, v)
