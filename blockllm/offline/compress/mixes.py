"""A choice of codecs as a chain that can be scored before anything enters the zoo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from blockllm.core import Chain, ChainEntry, Delta
from blockllm.engine.weights.loader import PackStore
from blockllm.offline.compress.candidates import Candidates, Targets
from blockllm.offline.compress.choose import Mix
from blockllm.zoo.digest import delta_id

ByPosition = dict[int, dict[str, Targets]]


class Stores:
    """A `ChainStore` of given chains over the packs of several stores. Nothing is written."""

    def __init__(self, stores: Sequence[PackStore], chains: Sequence[Chain]) -> None:
        self._stores = stores
        self._chains = {chain.model: chain for chain in chains}

    def chains(self, names: Sequence[str] | None = None) -> dict[str, Chain]:
        """The chains by name."""
        return {name: self._chains[name] for name in (names or self._chains)}

    def pack_path(self, pack: str) -> Path:
        """The file that holds a pack's tensors at their offsets; a name says what is in it."""
        paths = [store.pack_path(pack) for store in self._stores]
        return next((path for path in paths if path.exists()), paths[0])


def targets_of(candidates: Candidates, mix: Mix) -> ByPosition:
    """What the mix changes, by the layer's position and its module."""
    found: ByPosition = {}
    for (position, module), targets in candidates.fixed.items():
        found.setdefault(position, {})[module] = targets
    for weight, pick in zip(candidates.weights, mix.picks, strict=True):
        for position, module in weight.places if pick else ():
            modules = found.setdefault(position, {})
            modules[module] = (*modules.get(module, ()), *weight.targets[pick])
    return found


def chain_with(base: Chain, name: str, targets: ByPosition) -> Chain:
    """The base's chain under another name, with the targets as its deltas."""
    entries, position = [], 0
    for entry in base.entries:
        own = {
            f"{index}.{module}": group
            for index in range(len(entry.block.layers))
            for module, group in targets.get(position + index, {}).items()
        }
        delta = Delta(delta_id(own), own) if own else None
        entries.append(ChainEntry(entry.block, delta))
        position += len(entry.block.layers)
    return msgspec.structs.replace(base, model=name, entries=tuple(entries))
