"""Adding an opened model: read into a stage, then published.

Only the second is done under the zoo's write lock, so that a slow or a stuck folder stops nothing
but its own adding.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePath
from typing import NamedTuple

import msgspec

from blockllm.errors import CorruptStore, UnknownModel
from blockllm.zoo.adapters import store_adapter
from blockllm.zoo.adapters.stack import rescale
from blockllm.zoo.assets import find_files, has_own, store_assets
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.folder import Folder
from blockllm.zoo.model import store_checkpoint
from blockllm.zoo.opening import OpenedAdapter, OpenedModel
from blockllm.zoo.packs import PackWriter
from blockllm.zoo.records import Record, embedding_rows
from blockllm.zoo.reports import Progress
from blockllm.zoo.snapshot import Snapshot
from blockllm.zoo.staging import Stage
from blockllm.zoo.text.facts import TextFacts, read_facts
from blockllm.zoo.writing import Staged, is_current, publish_model, stage_model

Opened = OpenedModel | OpenedAdapter


class Ingested(NamedTuple):
    """What was added: its record, the bytes written, and sentences about its files."""

    record: Record
    stored_bytes: int
    notes: tuple[str, ...]


def add_beside_others(
    folder: Folder, catalog: Catalog, opened: Opened, progress: Progress
) -> Ingested | None:
    """Add a model, waiting for other writers only to publish it. None, and nothing is changed, if
    they have changed meanwhile what it shares with the zoo or is based on.

    Raises a ZooError or OSError, and then folder and catalogue are as before.
    """
    # the weights of a removed base may go while they are read
    with folder.staging() as stage, suppress(CorruptStore, FileNotFoundError):
        staged, notes = _stage(folder, stage, catalog, opened, progress)
        progress("waiting for other writers", 0, 0)
        with folder.writing():
            if is_current(folder, catalog, staged):
                publish_model(catalog, staged)
                return Ingested(staged.record, staged.writer.num_bytes, notes)
    return None


def add_locked(folder: Folder, catalog: Catalog, opened: Opened, progress: Progress) -> Ingested:
    """Add a model; the caller holds the write lock.

    Raises a ZooError or OSError, and then folder and catalogue are as before.
    """
    with folder.staging() as stage:
        staged, notes = _stage(folder, stage, catalog, opened, progress)
        publish_model(catalog, staged)
    return Ingested(staged.record, staged.writer.num_bytes, notes)


def _stage(
    folder: Folder, stage: Stage, catalog: Catalog, opened: Opened, progress: Progress
) -> tuple[Staged, tuple[str, ...]]:
    ticker = _Ticker(progress)
    notes = list(opened.notes)

    def store(snapshot: Snapshot, writer: PackWriter) -> Record:
        if isinstance(opened, OpenedModel):
            record, facts = _store_model(opened, writer, ticker)
        else:
            record, facts, more = _store_adapter(opened, folder, snapshot, writer, ticker)
            notes.extend(more)
        rows = embedding_rows(record)
        notes.extend(facts.notes_of(rows))
        assets, moves = store_assets(opened.own, folder, stage)
        writer.moves += moves
        return msgspec.structs.replace(record, assets=assets, eos_ids=facts.ends_within(rows))

    name = opened.options.name
    staged = stage_model(folder, stage, catalog, name, store, ticker.advance)
    return staged, tuple(notes)


class _Ticker:
    """Counts the bytes read and passes them on."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._done = 0
        self.total = 0

    def advance(self, nbytes: int) -> None:
        self._done += nbytes
        self._progress("reading", self._done, self.total)


def _store_model(
    opened: OpenedModel, writer: PackWriter, ticker: _Ticker
) -> tuple[Record, TextFacts]:
    ticker.total = opened.checkpoint.num_bytes
    record = store_checkpoint(opened.checkpoint, opened.options.name, opened.options.root, writer)
    return record, opened.facts._replace(ends=record.eos_ids + opened.facts.ends)


def _store_adapter(
    opened: OpenedAdapter, folder: Folder, snapshot: Snapshot, writer: PackWriter, ticker: _Ticker
) -> tuple[Record, TextFacts, tuple[str, ...]]:
    options, own, kind, weights, _ = opened
    base = _find_base(snapshot, options.base, kind.base)
    facts, assets = TextFacts(), snapshot.assets(base.name)
    if has_own(own, assets, folder):  # trainers save the base's files again, which take a second
        files = find_files(own, assets, folder)
        facts = read_facts(files, own, base.family, options.probe)
    plan = kind.read(weights.tensors, base.layers)
    ticker.total = plan.nbytes
    if options.scale is not None:
        plan = rescale(plan, options.scale)
    record = store_adapter(plan, options.name, options.root, base, writer)
    weights.check_unchanged()
    return record, facts._replace(ends=facts.ends + base.eos_ids), plan.notes


def _find_base(snapshot: Snapshot, given: str | None, recorded: str) -> Record:
    return snapshot.record(given) if given is not None else _guess_base(snapshot, recorded)


def _guess_base(snapshot: Snapshot, recorded: str) -> Record:
    full = snapshot.full_roots
    for name in (recorded, PurePath(recorded).name):
        if name in full:
            return snapshot.record(name)
    for name, root in full.items():
        if recorded and root == recorded:
            return snapshot.record(name)
    candidates = ", ".join(sorted(full)) or "none, add the base first"
    raise UnknownModel(
        f"the adapter was made for {recorded[:200]!r}, which is not in the zoo; "
        f"name its base (candidates: {candidates})"
    )
