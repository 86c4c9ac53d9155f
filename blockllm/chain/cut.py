"""Cutting a chain finer than sharing asks for."""

from __future__ import annotations

import msgspec

from blockllm.core import Block, Chain, ChainEntry, Delta, Target
from blockllm.zoo.digest import block_id, delta_id


def one_block_per_layer(chain: Chain) -> Chain:
    """The same model with each layer as a block of its own, and its deltas cut likewise."""
    entries: list[ChainEntry] = []
    for entry in chain.entries:
        for index, layer in enumerate(entry.block.layers):
            delta = _part(entry.delta, index) if entry.delta else None
            entries.append(ChainEntry(Block(block_id([layer.digest]), (layer,)), delta))
    return msgspec.structs.replace(chain, entries=tuple(entries))


def _part(delta: Delta, index: int) -> Delta | None:
    targets: dict[str, tuple[Target, ...]] = {}
    for key, group in delta.targets.items():
        position, _, module = key.partition(".")
        if int(position) == index:
            targets[f"0.{module}"] = group
    return Delta(delta_id(targets), targets) if targets else None
