"""Decoding rows through the built CPU kernel: reads exactly the tokens each row sees."""

from __future__ import annotations

import numpy as np
import torch

from blockllm.engine.attention.gathered import gathered_decode
from blockllm.engine.attention.rows import AttentionRows
from blockllm.engine.kernels import native


def native_decode(
    q: torch.Tensor,  # [n, heads, d]
    kv: torch.Tensor,
    bundle: int,
    rows: AttentionRows,
    members: np.ndarray | None,
    window: int | None,
) -> torch.Tensor:
    """As `gathered_decode`, which it falls back to where the kernel cannot be used."""
    if not native.usable(q):
        return gathered_decode(q, kv, bundle, rows, members, window)
    tables, contexts = rows.tables[:, bundle], rows.contexts
    if members is not None:
        tables, contexts = tables[torch.from_numpy(members)], contexts[members]
    return native.paged_decode(q, kv, tables, torch.from_numpy(contexts), window)
