"""The zoo at one moment: what a server reads of it once and keeps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from blockllm.core import Chain, ModelCard
from blockllm.zoo.assets import check_asset, find_asset
from blockllm.zoo.folder import Folder
from blockllm.zoo.snapshot import Snapshot


class Moment:
    """Cards, chains and assets of one state of the catalogue, whatever is written meanwhile."""

    def __init__(self, folder: Folder, snapshot: Snapshot) -> None:
        self._folder = folder
        self._snapshot = snapshot

    def cards(self) -> list[ModelCard]:
        """All models, oldest first."""
        return self._snapshot.cards()

    def chains(self, names: Iterable[str]) -> dict[str, Chain]:
        """These models as blocks and deltas; raises UnknownModel."""
        return {name: self._snapshot.chain(name) for name in names}

    def asset(self, name: str, file: str) -> Path | None:
        """As Zoo.asset; the file itself is gone when `gc` has removed it since."""
        check_asset(file)
        stored = find_asset(file, self._snapshot.assets(name))
        return self._folder.asset(stored) if stored else None
