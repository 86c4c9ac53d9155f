"""The zoo at one moment: what a server reads of it when it starts."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path

from blockllm.core import Chain, ModelCard
from blockllm.zoo.assets import check_asset, find_asset
from blockllm.zoo.cards import read_cards
from blockllm.zoo.folder import Folder
from blockllm.zoo.snapshot import Snapshot


class Moment:
    """Cards, chains and assets of one state of the catalogue, whatever is written meanwhile."""

    def __init__(self, folder: Folder, connection: sqlite3.Connection) -> None:
        """To be used within the connection's transaction."""
        self._folder = folder
        self._connection = connection
        self._snapshot = Snapshot(connection)

    def cards(self) -> list[ModelCard]:
        """All models, oldest first."""
        return read_cards(self._connection)

    def chains(self, names: Iterable[str]) -> dict[str, Chain]:
        """These models as blocks and deltas; raises UnknownModel."""
        return {name: self._snapshot.chain(name) for name in names}

    def asset(self, name: str, file: str) -> Path | None:
        """As Zoo.asset; the file itself is gone when `gc` has removed it since."""
        check_asset(file)
        stored = find_asset(file, self._snapshot.assets(name))
        return self._folder.asset(stored) if stored else None
