"""Adding one model, whole or not at all.

headers checked → new tensors into temporary packs, synced → renamed → one catalogue transaction
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import NamedTuple

import msgspec

from blockllm.errors import UnknownModel, ZooError
from blockllm.zoo.adapters import choose_kind, store_adapter
from blockllm.zoo.adapters.stack import rescale
from blockllm.zoo.assemble import write
from blockllm.zoo.assets import find_assets, find_files, has_own, store_assets
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.checkpoint import open_adapter
from blockllm.zoo.contents import look_at
from blockllm.zoo.folder import Folder
from blockllm.zoo.model import open_checkpoint, store_checkpoint
from blockllm.zoo.packs import PackWriter
from blockllm.zoo.records import Record, embedding_rows
from blockllm.zoo.reports import Progress
from blockllm.zoo.snapshot import Snapshot
from blockllm.zoo.text.conversion import convert
from blockllm.zoo.text.facts import TextFacts, read_facts
from blockllm.zoo.text.files import TOKENIZER


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
        contents = look_at(wish.folder)
        notes.extend(contents.notes)
        job = _Job(wish, find_assets(wish.folder), snapshot, writer, ticker, notes)
        store_one = _store_adapter if contents.is_adapter else _store_model
        record, facts = store_one(job, folder)
        rows = embedding_rows(record)
        notes.extend(facts.notes_of(rows))
        assets, moves = store_assets(job.own, folder)
        writer.moves += moves
        return msgspec.structs.replace(record, assets=assets, eos_ids=facts.ends_within(rows))

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


class _Job(NamedTuple):
    """One model on its way: its own text files, the zoo as it is, and where everything goes."""

    wish: Wish
    own: dict[str, Path]
    snapshot: Snapshot
    writer: PackWriter
    ticker: _Ticker
    notes: list[str]


def _store_model(job: _Job, folder: Folder) -> tuple[Record, TextFacts]:
    wish, own = job.wish, job.own
    if wish.base is not None:
        raise ZooError(f"{wish.root} is a full checkpoint, not an adapter: it takes no base")
    if wish.scale is not None:
        raise ZooError(f"{wish.root} is a full checkpoint, not an adapter: it has no scale")
    checkpoint = open_checkpoint(wish.folder, as_int8=wish.format == "int8")
    with checkpoint.files:
        converted = convert(wish.folder, own, checkpoint.family)
        if converted:
            job.notes.append(converted.note)
        if converted and converted.text is not None:
            own[TOKENIZER] = folder.new_temporary()
            own[TOKENIZER].write_text(converted.text, "utf-8")
        facts = read_facts(own, own, checkpoint.family)
        job.notes.extend(checkpoint.notes)
        job.ticker.total = checkpoint.num_bytes
        record = store_checkpoint(checkpoint, wish.name, wish.root, job.writer)
    return record, facts._replace(ends=record.eos_ids + facts.ends)


def _store_adapter(job: _Job, folder: Folder) -> tuple[Record, TextFacts]:
    wish, own = job.wish, job.own
    if wish.format is not None:
        raise ZooError(f"{wish.root} is an adapter: it takes the format of its base")
    kind = choose_kind(wish.folder)
    base = _find_base(job.snapshot, wish.base, kind.base)
    facts, assets = TextFacts(), job.snapshot.assets(base.name)
    if has_own(own, assets, folder):  # trainers save the base's files again, which take a second
        facts = read_facts(find_files(own, assets, folder), own, base.family)
    with open_adapter(wish.folder, kind.files, kind.saving) as weights:
        plan = kind.read(weights.tensors, base.layers)
        job.notes.extend(plan.notes)
        job.ticker.total = plan.nbytes
        if wish.scale is not None:
            plan = rescale(plan, wish.scale)
        record = store_adapter(plan, wish.name, wish.root, base, job.writer)
        weights.check_unchanged()
    return record, facts._replace(ends=facts.ends + base.eos_ids)


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
