"""Adding one model, whole or not at all.

headers checked → new tensors into temporary packs, synced → renamed → one catalogue transaction
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import NamedTuple

import msgspec

from blockllm.errors import AdapterMismatch, UnknownModel, ZooError
from blockllm.zoo import records
from blockllm.zoo.adapter import plan_adapter, store_adapter
from blockllm.zoo.adapter_config import CONFIG_FILE, read_adapter_config
from blockllm.zoo.assets import store_assets
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.checkpoint import open_adapter
from blockllm.zoo.folder import Folder, publish, remove
from blockllm.zoo.model import open_checkpoint, store_checkpoint
from blockllm.zoo.packs import PackWriter
from blockllm.zoo.records import Record
from blockllm.zoo.reports import Progress
from blockllm.zoo.snapshot import Snapshot


class Wish(NamedTuple):
    """What to add: the name it gets, its folder, what the user called that, the base's name, and
    the format of its linears ("int8"; None: as they are).
    """

    name: str
    folder: Path
    root: str
    base: str | None
    format: str | None


def ingest(folder: Folder, catalog: Catalog, wish: Wish, progress: Progress) -> tuple[Record, int]:
    """Add a model under the zoo's write lock; returns its record and the bytes written.

    Raises a ZooError or OSError, and then folder and catalogue are as before.
    """
    with catalog.reading() as connection:
        records.check_free(connection, wish.name)
        ticker = _Ticker(progress)
        writer = PackWriter(
            folder, lambda tensor: records.find_tensor(connection, tensor), ticker.advance
        )
        try:
            if (wish.folder / CONFIG_FILE).exists():
                record = _store_adapter(wish, Snapshot(connection), writer, ticker)
            else:
                record = _store_model(wish, writer, ticker)
            assets, moves = store_assets(wish.folder, folder)
            published = publish([*writer.moves, *moves])
        finally:
            folder.drop_temporary()
    record = msgspec.structs.replace(record, assets=assets)
    try:
        with catalog.writing() as connection:
            records.insert(connection, record)
    except BaseException:
        for path in published:
            remove(path)
        raise
    return record, writer.num_bytes


class _Ticker:
    """Counts the bytes read and passes them on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0
        self.total = 0

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress("reading", self._done, self.total)


def _store_model(wish: Wish, writer: PackWriter, ticker: _Ticker) -> Record:
    if wish.base is not None:
        raise ZooError(f"{wish.root} is a full checkpoint, not an adapter: it takes no base")
    checkpoint = open_checkpoint(wish.folder, as_int8=wish.format == "int8")
    with checkpoint.files:
        ticker.total = checkpoint.num_bytes
        return store_checkpoint(checkpoint, wish.name, wish.root, writer)


def _store_adapter(wish: Wish, snapshot: Snapshot, writer: PackWriter, ticker: _Ticker) -> Record:
    if wish.format is not None:
        raise ZooError(f"{wish.root} is an adapter: it takes the format of its base")
    config = read_adapter_config(wish.folder)
    base = _find_base(snapshot, wish.base, config.base)
    with open_adapter(wish.folder) as files:
        ticker.total = sum(source.entry.nbytes for source in files.tensors.values())
        plan = plan_adapter(config, files.tensors, base.layers)
        record = store_adapter(plan, wish.name, wish.root, base, writer)
        files.check_unchanged()
    return record


def _find_base(snapshot: Snapshot, given: str | None, recorded: str) -> Record:
    base = snapshot.record(given) if given is not None else _guess_base(snapshot, recorded)
    if base.kind != "full":
        raise AdapterMismatch(f"{base.name!r} is an adapter itself; give a full model as base")
    return base


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
