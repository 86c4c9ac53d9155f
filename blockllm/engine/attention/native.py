"""Attention through the built CPU kernels: reads exactly the tokens each row sees."""

from __future__ import annotations

import torch

from blockllm.engine.attention.rope import RopeTable
from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.attention.sdpa import SdpaAttention
from blockllm.engine.kernels.cpu import native
from blockllm.engine.kernels.cpu.native import address
from blockllm.engine.kernels.cpu.structs import KVAccess

_TILE = 64  # rows of a prompt that one task of the kernel attends
_INT, _LONG = 4, 8  # bytes of an index


class NativeAttention:
    """See the port in `attention/__init__.py`. Where the kernels cannot be used, torch serves."""

    def __init__(self) -> None:
        self._fallback = SdpaAttention()

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
        if not rows.kernels.native(q):
            return self._fallback.attend(q, k, v, kv, bundle, rows, window)
        tables = rows.bundle_tables[bundle]
        members, where, contexts = rows.generated
        threads = rows.kernels.threads
        if not rows.has_given and not rows.has_runs:
            return native.paged_decode(q, kv, tables, contexts, window, threads)
        out = torch.empty(q.shape)
        native.paged_prefill(out, q, kv, tables, rows.given_tiles(_TILE), window, threads)
        if len(members):
            own = (tables[members], contexts, window, threads)
            out[where] = native.paged_decode(q[where], kv, *own)
        return out


def kv_access(rows: AttentionRows, table: RopeTable) -> KVAccess:
    """A hop's rows as native programs take them, made once for all layers that rotate alike."""
    known = rows.accesses.get(id(table))
    if known is None:
        part, of = rows.part, rows.gathered.addresses
        _, bundles, width = rows.gathered.pages.tables.shape
        tiles = decoding = None
        if part.has_runs or rows.has_given:
            tiles, decoding = rows.given_tiles(_TILE), rows.generated
            (members, where, contexts), singles = map(address, decoding), len(decoding.members)
        else:
            members = where = 0
            contexts, singles = of.contexts + _LONG * part.first_member, len(part.members)
        made = KVAccess(
            *of.pages,
            table.cos.data_ptr(), table.sin.data_ptr(), address(table.at),
            of.write_pages + _LONG * part.first_row, len(rows.gathered.rows.rows),
            of.write_offsets + _LONG * part.first_row,
            of.tables + _INT * part.first_member * bundles * width, bundles, width,
            address(tiles), 0 if tiles is None else len(tiles),
            members, where, contexts, singles,
        )  # fmt: skip
        known = rows.accesses[id(table)] = made, (table, tiles, decoding)
    return known[0]
