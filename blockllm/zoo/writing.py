"""Making one model, whole or not at all.

new tensors and files into a stage, synced → renamed → one catalogue transaction

The first part needs no lock of the zoo: what others did meanwhile is looked at before the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from blockllm.core import Measurement
from blockllm.errors import UnknownModel
from blockllm.zoo import records
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.folder import Folder, publish, remove
from blockllm.zoo.packs import PackWriter
from blockllm.zoo.records import Record
from blockllm.zoo.snapshot import Snapshot
from blockllm.zoo.staging import Stage


class Staged(NamedTuple):
    """A model whose new files are in a stage, and what it is based on."""

    record: Record
    writer: PackWriter
    base: Record | None


def stage_model(
    folder: Folder,
    stage: Stage,
    catalog: Catalog,
    name: str,
    store: Callable[[Snapshot, PackWriter], Record],
    advance: Callable[[int], None] = lambda nbytes: None,
) -> Staged:
    """Let `store` write packs and describe a model. Raises a ZooError or OSError."""
    with catalog.reading() as connection:
        records.check_free(connection, name)
        find = lambda t: records.find_tensor(connection, t)  # noqa: E731
        writer = PackWriter(folder, stage, find, advance)
        snapshot = Snapshot(connection)
        record = store(snapshot, writer)
        return Staged(record, writer, _base(snapshot, record))


def is_current(folder: Folder, catalog: Catalog, staged: Staged) -> bool:
    """Whether the zoo has what the model was found to share, and no tensor more of it. Under the
    write lock. Raises NameTaken."""
    # an adapter's record has its base's layers, which the writer does not meet
    known = (staged.base.tensors() if staged.base else {}) | staged.writer.known
    assets = {folder.asset(name) for name in staged.record.assets.values()}
    new = {final for _, final in staged.writer.moves}
    if not all(path.exists() for path in assets - new):
        return False
    with catalog.reading() as connection:
        records.check_free(connection, staged.record.name)
        for tensor in staged.record.tensors().values():
            if records.find_tensor(connection, tensor.hash) != known.get(tensor.hash):
                return False
        try:
            return _base(Snapshot(connection), staged.record) == staged.base
        except UnknownModel:
            return False


def publish_model(catalog: Catalog, staged: Staged, loss: Measurement | None = None) -> None:
    """Make the model visible with its measured loss, or nothing of it. Under the write lock."""
    published = publish(staged.writer.moves)
    try:
        with catalog.writing() as connection:
            records.insert(connection, staged.record)
            if loss:
                records.insert_measurement(connection, loss)
    except BaseException:
        for path in published:
            remove(path)
        raise


def _base(snapshot: Snapshot, record: Record) -> Record | None:
    return None if record.parent is None else snapshot.record(record.parent)
