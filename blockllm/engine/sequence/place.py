"""Where rows wait."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """A span, and where its KV lies in the waiting sequences' chains (None: it keeps no KV).

    Chains may hold one block at different depths; such rows cannot share a hop, since a hop
    reads one column of the page tables.
    """

    span: int
    first_kv_layer: int | None
