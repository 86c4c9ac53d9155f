"""Adding one model, whole or not at all.

headers checked → new tensors into temporary packs, synced → renamed → one catalogue transaction
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import NamedTuple

import msgspec

from blockllm.errors import UnknownModel, ZooError
from blockllm.zoo.adapters import CONFIG_FILE, choose_kind, store_adapter
from blockllm.zoo.adapters.stack import rescale
from blockllm.zoo.assemble import write
from blockllm.zoo.assets import find_assets, store_assets
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.checkpoint import open_adapter
from blockllm.zoo.folder import Folder
from blockllm.zoo.model import open_checkpoint, store_checkpoint
from blockllm.zoo.packs import PackWriter
from blockllm.zoo.records import Record
from blockllm.zoo.reports import Progress
from blockllm.zoo.snapshot import Snapshot


class Wish(NamedTuple):
    """What to add: the name it gets, its folder, what the user called that, the base's name, the
    format of its linears ("int8"; None: as they are), and the factor of an adapter's scale.
    """

    name: str
    folder: Path
    root: str
    base: str | None
    format: str | None
    scale: float | None


class Ingested(NamedTuple):
    """What was added: its record, the bytes written, and sentences about its files."""

    record: Record
    stored_bytes: int
    notes: tuple[str, ...]


def ingest(folder: Folder, catalog: Catalog, wish: Wish, progress: Progress) -> Ingested:
    """Add a model under the zoo's write lock.

    Raises a ZooError or OSError, and then folder and catalogue are as before.
    """
    ticker = _Ticker(progress)
    notes: list[str] = []

    def store(snapshot: Snapshot, writer: PackWriter) -> Record:
        if (wish.folder / CONFIG_FILE).exists():
            record = _store_adapter(wish, snapshot, writer, ticker, notes)
        else:
            record = _store_model(wish, writer, ticker, notes)
        assets, moves = store_assets(find_assets(wish.folder), folder)
        writer.moves += moves
        return msgspec.structs.replace(record, assets=assets)

    record, stored_bytes = write(folder, catalog, wish.name, store, ticker.advance)
    return Ingested(record, stored_bytes, tuple(notes))


class _Ticker:
    """Counts the bytes read and passes them on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0
        self.total = 0

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress("reading", self._done, self.total)


def _store_model(wish: Wish, writer: PackWriter, ticker: _Ticker, notes: list[str]) -> Record:
    if wish.base is not None:
        raise ZooError(f"{wish.root} is a full checkpoint, not an adapter: it takes no base")
    if wish.scale is not None:
        raise ZooError(f"{wish.root} is a full checkpoint, not an adapter: it has no scale")
    checkpoint = open_checkpoint(wish.folder, as_int8=wish.format == "int8")
    with checkpoint.files:
        notes += checkpoint.notes
        ticker.total = checkpoint.num_bytes
        return store_checkpoint(checkpoint, wish.name, wish.root, writer)


def _store_adapter(
    wish: Wish, snapshot: Snapshot, writer: PackWriter, ticker: _Ticker, notes: list[str]
) -> Record:
    if wish.format is not None:
        raise ZooError(f"{wish.root} is an adapter: it takes the format of its base")
    kind = choose_kind(wish.folder)
    base = _find_base(snapshot, wish.base, kind.base)
    with open_adapter(wish.folder, kind.files, kind.saving) as files:
        plan = kind.read(files.tensors, base.layers)
        notes += plan.notes
        ticker.total = plan.nbytes
        if wish.scale is not None:
            plan = rescale(plan, wish.scale)
        record = store_adapter(plan, wish.name, wish.root, base, writer)
        files.check_unchanged()
    return record


def _find_base(snapshot: Snapshot, given: str | None, recorded: str) -> Record:
    return snapshot.record(given) if given is not None else _guess_base(snapshot, recorded)


def _guess_base(snapshot: Snapshot, recorded: str) -> Record:
    full = {name: record for name, record in snapshot.records.items() if record.kind == "full"}
    for name in (recorded, PurePath(recorded).name):
        if name in full:
            return full[name]
    for record in full.values():
        if recorded and record.root == recorded:
            return record
    candidates = ", ".join(sorted(full)) or "none, add the base first"
    raise UnknownModel(
        f"the adapter was made for {recorded[:200]!r}, which is not in the zoo; "
        f"name its base (candidates: {candidates})"
    )
