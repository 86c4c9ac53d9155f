"""The zoo: add, list, check and remove models; chains and assets for servers."""

from __future__ import annotations

import errno
import math
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from blockllm.core import Chain, Layer, Measurement, ModelCard
from blockllm.errors import StoreFull, UnknownModel, ZooError
from blockllm.zoo import findings, garbage, records, verification
from blockllm.zoo.assemble import AnyTargets, Assembly, NewLayer, OwnFacts, assemble
from blockllm.zoo.cards import read_cards
from blockllm.zoo.catalog import Catalog
from blockllm.zoo.folder import Folder
from blockllm.zoo.ingest import Ingested, Opened, add_beside_others, add_locked
from blockllm.zoo.moment import Moment
from blockllm.zoo.opening import AddOptions, open_source
from blockllm.zoo.records import Record, Targets
from blockllm.zoo.renewal import renew
from blockllm.zoo.reports import AddReport, GcReport, Progress, VerifyReport, silent
from blockllm.zoo.room import FULL, full, read_only
from blockllm.zoo.snapshot import Snapshot
from blockllm.zoo.source import check_name, find_folder
from blockllm.zoo.text.facts import Probe

Found = TypeVar("Found")
Made = TypeVar("Made")


class Zoo:
    """One zoo on disk. Cheap to open; safe to use from several threads and processes."""

    def __init__(self, path: str | Path, probe: Probe | None = None) -> None:
        """Open the zoo in a folder. An absent or empty folder becomes one with the first `add`;
        until then everything else raises ZooError. Raises ZooError for a folder of other files.

        `probe` tries the text files of what is added or verified, such as api.probe.probe_texts;
        without it a tokenizer that never ends is read in this process.
        """
        self._probe = probe
        self._folder = Folder(Path(path).expanduser().absolute())
        self._catalog = Catalog(self._folder.catalog)
        with self._disk_errors():
            self._folder.check_usable()
            try:
                if self._folder.catalog.exists() and not self._catalog.is_ready():
                    with self._folder.writing():
                        self._create_catalog()
            except ZooError:
                # a first add that another process makes may have failed and taken its zoo away
                if self._folder.catalog.exists():
                    raise

    def exists(self) -> bool:
        """Whether the folder holds a zoo; if not, the first `add` makes one."""
        return self._folder.catalog.exists()

    def add(
        self,
        name: str,
        source: str | Path,
        base: str | None = None,
        progress: Progress = silent,
        format: Literal["int8"] | None = None,
        scale: float | None = None,
    ) -> AddReport:
        """Add a full checkpoint or an adapter from a folder or the Hugging Face hub.

        `base` names an adapter's base in the zoo; without it the adapter's own config decides. The
        base may be an adapter itself: both apply. `scale` multiplies the scale of a low-rank or
        bottleneck adapter.
        `format` "int8" rounds a full checkpoint's linears and head; None keeps them as they are.
        Raises a ZooError, and then nothing was changed.
        """
        started = time.monotonic()
        check_name(name)
        if format not in (None, "int8"):
            raise ZooError(f"format: expected int8, got {str(format)[:40]!r}")
        if scale is not None and not math.isfinite(scale):
            raise ZooError(f"scale: expected a finite number, got {scale}")
        with self._disk_errors():
            # a path need not be valid text; the catalogue's strings are
            root = str(source).encode("utf-8", "replace").decode()
            options = AddOptions(name, find_folder(source), root, base, format, scale, self._probe)
            with open_source(options) as opened:
                record, stored, notes = self._add(opened, progress)
        return self._report(record, stored, started, notes)

    def _add(self, opened: Opened, progress: Progress) -> Ingested:
        added = None
        if self._has_models():  # and so stays, whatever other writers do
            added = add_beside_others(self._folder, self._catalog, opened, progress)
        if added is None:
            progress("waiting for other writers", 0, 0)
            with self._folder.growing(self._create_catalog):
                added = add_locked(self._folder, self._catalog, opened, progress)
        self._top_up()
        return added

    def _has_models(self) -> bool:
        try:
            with self._reading() as connection:
                return connection.execute("SELECT 1 FROM model").fetchone() is not None
        except ZooError:  # a first add that another process makes has not made the tables yet
            return False

    def assemble(
        self,
        name: str,
        like: str,
        layers: Sequence[Layer | NewLayer],
        kind: str = "assembled",
        exact: bool = False,
        root: str = "",
        targets: AnyTargets | None = None,
        parent: str | None = None,
        own: OwnFacts | None = None,
    ) -> AddReport:
        """Make a model of layers of the zoo and new ones, the embedding first and the head last.

        What is no weight (family, dtype, context, ends, tokenizer) is that of the model `like`.
        `targets` are what it changes at modules by position, `parent` the model it is a delta of,
        `own` what it does not take from `like`.
        Raises a ZooError, and then nothing was changed.
        """
        started = time.monotonic()
        check_name(name)
        assembly = Assembly(name, like, tuple(layers), kind, exact, root, targets, parent, own)
        with self._disk_errors(), self._folder.writing():
            record, stored = assemble(self._folder, self._catalog, assembly)
        return self._report(record, stored, started)

    def _report(
        self, record: Record, stored: int, started: float, notes: tuple[str, ...] = ()
    ) -> AddReport:
        with self._snapshot() as snapshot:
            blocks = [block.id for block in snapshot.blocks(record.name)]
            num_shared = sum(snapshot.riders[block] > 1 for block in blocks)
        return AddReport(
            name=record.name,
            total_bytes=sum(tensor.nbytes for tensor in record.tensors().values()),
            stored_bytes=stored,
            num_blocks=len(blocks),
            num_shared_blocks=num_shared,
            seconds=time.monotonic() - started,
            notes=notes,
        )

    def remove(self, name: str) -> None:
        """Forget a model; its weights stay on disk until `gc`.

        Raises UnknownModel, and ZooError while adapters are based on it.
        """

        def delete() -> None:
            with self._catalog.writing() as connection:
                records.delete(connection, name)

        self._free(delete)

    def record_loss(self, measurement: Measurement) -> None:
        """Keep what was measured; it replaces a measurement of the same model against the same
        reference on the same text. Raises UnknownModel.
        """
        with self._disk_errors(), self._folder.writing(), self._catalog.writing() as connection:
            records.insert_measurement(connection, measurement)

    def record_finding(self, kind: str, subject: str, object: str, value: msgspec.Struct) -> None:
        """Keep what was found out about two layers, models or devices; it replaces an earlier
        finding of the same kind about the same two."""
        with self._disk_errors(), self._folder.writing(), self._catalog.writing() as connection:
            findings.insert(connection, kind, subject, object, value)

    def findings(self, kind: str, type: type[Found]) -> dict[tuple[str, str], Found]:
        """All findings of a kind by subject and object. Raises CorruptStore for one that is not of
        the type."""
        with self._reading() as connection:
            return findings.read(connection, kind, type)

    def layers(self, name: str) -> tuple[Layer, ...]:
        """A model's layers, the embedding first and the head last; raises UnknownModel."""
        with self._snapshot() as snapshot:
            return snapshot.record(name).layers

    def targets(self, name: str) -> Targets:
        """What a model changes at its layers' modules; raises UnknownModel."""
        with self._snapshot() as snapshot:
            return snapshot.record(name).targets

    def cards(self) -> list[ModelCard]:
        """All models, oldest first."""
        with self._reading() as connection:
            return read_cards(connection)

    def weight_bytes(self) -> int:
        """Bytes of the weights that models need, each once."""
        with self._reading() as connection:
            tensors = Snapshot(connection).tensors
            needed = connection.execute(garbage.NEEDED_TENSORS)
            return sum(tensors[name].nbytes for (name,) in needed if name in tensors)

    def disk_bytes(self) -> int:
        """Bytes of all files of the zoo."""
        return self._folder.num_bytes()

    def card(self, name: str) -> ModelCard:
        """One model; raises UnknownModel."""
        found = next((card for card in self.cards() if card.name == name), None)
        if found is None:
            raise UnknownModel(f"the zoo has no model named {name!r}")
        return found

    def chain(self, name: str) -> Chain:
        """One model as blocks and deltas; raises UnknownModel."""
        with self._snapshot() as snapshot:
            return snapshot.chain(name)

    def chains(self, names: Iterable[str] | None = None) -> dict[str, Chain]:
        """Several models of one moment (all that are not damaged by default): equal blocks are one
        object. Raises UnknownModel and CorruptStore for a name."""
        with self._snapshot() as snapshot:
            wanted = snapshot.records if names is None else names
            return {name: snapshot.chain(name) for name in wanted}

    @contextmanager
    def moment(self) -> Iterator[Moment]:
        """All of this as it is now: cards, chains and assets of one state of the catalogue."""
        with self._reading() as connection:
            yield Moment(self._folder, connection)

    def asset(self, name: str, file: str) -> Path | None:
        """Path of one of a model's text files (text.files.TEXT_FILES); None if it came without.

        An adapter without the file has that of what it is based on. Raises UnknownModel.
        """
        with self._reading() as connection:
            return Moment(self._folder, connection).asset(name, file)

    def pack_path(self, pack: str) -> Path:
        """The file that holds a pack's tensors at their offsets; it is never changed."""
        return self._folder.pack(pack)

    def verify(self, progress: Progress = silent) -> VerifyReport:
        """Compare every stored byte with what its name promises, and read tokenizers and templates.
        Writers wait meanwhile."""
        progress("waiting for other writers", 0, 0)
        with self._disk_errors(), self._folder.still(), self._catalog.reading() as connection:
            return verification.verify(self._folder, connection, progress, self._probe)

    def gc(self) -> GcReport:
        """Delete packs, assets and rows that no model needs, and what killed adds left behind."""
        return self._free(lambda: garbage.collect(self._folder, self._catalog))

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._folder.check_there()
        with self._catalog.reading() as connection:
            yield connection

    def _create_catalog(self) -> None:
        self._folder.check_catalog()
        self._catalog.create(partial(renew, self._folder))

    @contextmanager
    def _snapshot(self) -> Iterator[Snapshot]:
        with self._reading() as connection:
            yield Snapshot(connection)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            root = self._folder.root
            if error.errno in FULL:
                raise full(root) from error
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise read_only(root, str(error.strerror).lower()) from error
            raise ZooError(str(error)) from error

    def _free(self, work: Callable[[], Made]) -> Made:
        """Do what makes room, under the write lock: on a full disk with that of the reserve."""
        with self._disk_errors():
            try:
                with self._disk_errors(), self._folder.writing():
                    made = work()
            except StoreFull:
                if not self._folder.reserve.release():
                    raise
                with self._folder.writing():
                    made = work()
            self._top_up()
        return made

    def _top_up(self) -> None:
        if self._folder.reserve.is_short:
            with self._folder.writing():
                self._folder.reserve.fill()
