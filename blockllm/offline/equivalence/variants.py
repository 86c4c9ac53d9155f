"""Chains that exist only in memory: what the zoo would serve if layers were put together so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from blockllm.core import Block, Chain, ChainEntry, Layer
from blockllm.engine.weights.loader import PackStore
from blockllm.zoo.digest import block_id


def chain_of(name: str, layers: Sequence[Layer], like: Chain) -> Chain:
    """A chain of the layers, each a block of its own; limits are those of `like`."""
    entries = tuple(ChainEntry(Block(block_id([x.digest]), (x,))) for x in layers)
    return msgspec.structs.replace(like, model=name, entries=entries, parent=None)


class Variants:
    """A `ChainStore` of given chains over the packs of a zoo. Nothing is written."""

    def __init__(self, store: PackStore, chains: Sequence[Chain]) -> None:
        self._store = store
        self._chains = {chain.model: chain for chain in chains}

    def chains(self, names: Sequence[str] | None = None) -> dict[str, Chain]:
        """The chains by name."""
        return {name: self._chains[name] for name in (names or self._chains)}

    def pack_path(self, pack: str) -> Path:
        """The file that holds a pack's tensors at their offsets."""
        return self._store.pack_path(pack)
