"""What an engine reads of a zoo when its chains are pinned: packs by content, never a name."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from blockllm.core import Chain
from blockllm.errors import ZooError
from blockllm.zoo import findings
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.folder import Folder
from blockllm.zoo.packs import has

Found = TypeVar("Found")

logger = logging.getLogger(__name__)


class PinnedZoo:
    """Given chains over the packs of a zoo's folder. Nothing is written, the folder least of all;
    models that were added, removed or replaced since do not matter."""

    def __init__(self, path: str | Path, chains: Mapping[str, Chain]) -> None:
        self._folder = Folder(Path(path).expanduser().absolute())
        self._chains = dict(chains)

    def chains(self, names: Iterable[str] | None = None) -> dict[str, Chain]:
        """Some of the chains, or all."""
        wanted = self._chains if names is None else names
        return {name: self._chains[name] for name in wanted}

    def pack_path(self, pack: str) -> Path:
        """The file that holds a pack's tensors; it is gone when `gc` has removed it."""
        return self._folder.pack(pack)

    def findings(self, kind: str, type: type[Found]) -> dict[tuple[str, str], Found]:
        """Findings of a kind, which name no model but shapes; none when they cannot be read."""
        catalog = Catalog(self._folder.catalog)
        try:
            if not catalog.is_ready():
                return {}
            with catalog.reading() as connection:
                return findings.read(connection, kind, type)
        except ZooError as error:
            logger.warning("findings of kind %r are not used: %s", kind, error)
            return {}

    def gone(self) -> dict[str, str]:
        """Models whose packs are not all there, and why each cannot be loaded."""
        sizes: dict[str, int] = {}  # by pack
        found = {}
        for model, chain in self._chains.items():
            for tensor in chain.tensors():
                if tensor.pack not in sizes:
                    sizes[tensor.pack] = _size(self.pack_path(tensor.pack))
                if sizes[tensor.pack] < tensor.offset + tensor.nbytes:
                    state = "gone from the zoo" if sizes[tensor.pack] < 0 else "damaged"
                    found[model] = f"its weights are {state} (pack {tensor.pack[:12]}…)"
                    break
        return found

    def damaged(self) -> dict[str, str]:
        """Models whose packs have other bytes than were stored, and why each cannot be loaded.
        Reads all packs."""
        sound: dict[str, bool] = {}  # by tensor
        found = {}
        for model, chain in self._chains.items():
            for tensor in chain.tensors():
                if tensor.hash not in sound:
                    sound[tensor.hash] = has(self.pack_path(tensor.pack), tensor)
                if not sound[tensor.hash]:
                    found[model] = f"its weights are damaged (pack {tensor.pack[:12]}…)"
                    break
        return found


def _size(path: Path) -> int:
    """Bytes of a file; -1 when there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
