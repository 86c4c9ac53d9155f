"""One consistent state of the catalogue, read whole: chains and cards follow from it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import cached_property
from typing import Any, NamedTuple

import msgspec

from blockllm.core import (
    Chain,
    Function,
    Layer,
    Measurement,
    ModelCard,
    Target,
    Tensor,
)
from blockllm.errors import UnknownModel
from blockllm.zoo.blocks import Blocks
from blockllm.zoo.records import Record, Targets

_MODELS = (
    "SELECT m.id, m.name, m.kind, m.family, p.name, m.root, m.dtype, m.max_context, m.eos_ids,"
    " m.created, m.exact FROM model m LEFT JOIN model p ON p.id = m.parent ORDER BY m.created, m.id"
)


class Snapshot:
    """All models of a zoo at one moment. Equal layers and blocks are one object."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.tensors = _read_tensors(connection)
        self.layers = _read_layers(connection, self.tensors)
        self.records: dict[str, Record] = {}
        self._created: dict[str, float] = {}
        self._loss = _read_measurements(connection)
        for row in connection.execute(_MODELS).fetchall():
            record = _read_record(connection, row, self.layers, self.tensors)
            self.records[record.name] = record
            self._created[record.name] = row[-2]

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self.records)

    def record(self, name: str) -> Record:
        """What was added under a name; raises UnknownModel."""
        if name not in self.records:
            raise UnknownModel(f"the zoo has no model named {name!r}")
        return self.records[name]

    def assets(self, name: str) -> list[dict[str, str]]:
        """Stored names of a model's own asset files, then of what it is based on, and so on."""
        found = []
        parent: str | None = name
        while parent is not None:
            record = self.record(parent)
            found.append(record.assets)
            parent = record.parent
        return found

    def chain(self, name: str) -> Chain:
        """The model as blocks and deltas; raises UnknownModel."""
        record = self.record(name)
        entries = self._blocks.entries(name)
        return Chain(name, entries, record.max_context, record.eos_ids, record.parent)

    def cards(self) -> list[ModelCard]:
        """All models, oldest first, with the bytes that each shares and owns."""
        chains = {name: self.chain(name) for name in self.records}
        blocks = {name: {e.block.id for e in chain.entries} for name, chain in chains.items()}
        tensors = {name: record.tensors() for name, record in self.records.items()}
        riders = Counter(block for ids in blocks.values() for block in ids)
        owners = Counter(tensor for hashes in tensors.values() for tensor in hashes)
        cards = []
        for name, record in self.records.items():
            total = sum(tensor.nbytes for tensor in tensors[name].values())
            own = sum(t.nbytes for t in tensors[name].values() if owners[t.hash] == 1)
            num_shared = sum(riders[e.block.id] > 1 for e in chains[name].entries)
            size = _Size(len(chains[name].entries), num_shared, total, own)
            loss = tuple(self._loss.get(name, ()))
            cards.append(_card(record, size, self._created[name], loss))
        return cards


class _Size(NamedTuple):
    num_blocks: int
    num_shared: int
    total: int
    own: int


def _card(record: Record, size: _Size, created: float, loss: tuple[Measurement, ...]) -> ModelCard:
    return ModelCard(
        name=record.name,
        kind=record.kind,
        family=record.family,
        parent=record.parent,
        root=record.root,
        dtype=record.dtype,
        format=record.format,
        exact=record.exact,
        num_blocks=size.num_blocks,
        num_shared_blocks=size.num_shared,
        total_bytes=size.total,
        own_bytes=size.own,
        shared_bytes=size.total - size.own,
        max_context=record.max_context,
        created=created,
        loss=loss,
    )


def _read_tensors(connection: sqlite3.Connection) -> dict[str, Tensor]:
    decoder = msgspec.json.Decoder(tuple[int, ...])
    rows = connection.execute("SELECT hash, dtype, shape, pack, offset FROM tensor")
    return {row[0]: Tensor(row[0], row[1], decoder.decode(row[2]), *row[3:]) for row in rows}


def _read_layers(connection: sqlite3.Connection, tensors: dict[str, Tensor]) -> dict[str, Layer]:
    parts: dict[str, dict[str, Tensor]] = {}
    for digest, name, tensor in connection.execute("SELECT * FROM layer_tensor"):
        parts.setdefault(digest, {})[name] = tensors[tensor]
    decoder: msgspec.json.Decoder[Function] = msgspec.json.Decoder(Function)
    rows = connection.execute("SELECT digest, function FROM layer")
    return {
        digest: Layer(digest, decoder.decode(function), parts[digest]) for digest, function in rows
    }


def _read_measurements(connection: sqlite3.Connection) -> dict[str, list[Measurement]]:
    decoder = msgspec.json.Decoder(Measurement)
    found: dict[str, list[Measurement]] = {}
    for (value,) in connection.execute("SELECT value FROM measurement"):
        measurement = decoder.decode(value)
        found.setdefault(measurement.model, []).append(measurement)
    return {name: sorted(made, key=lambda m: m.created) for name, made in found.items()}


def _read_record(
    connection: sqlite3.Connection,
    row: tuple[int, str, str, str, str | None, str, str, int, str, float, int],
    layers: dict[str, Layer],
    tensors: dict[str, Tensor],
) -> Record:
    model, name, kind, family, parent, root, dtype, max_context, eos_ids, _, exact = row
    sql = "SELECT layer FROM model_layer WHERE model = ? ORDER BY position"
    digests = [found[0] for found in connection.execute(sql, [model])]
    assets = connection.execute("SELECT file, name FROM asset WHERE model = ?", [model])
    return Record(
        name=name,
        kind=kind,
        family=family,
        parent=parent,
        root=root,
        dtype=dtype,
        max_context=max_context,
        eos_ids=msgspec.json.decode(eos_ids, type=tuple[int, ...]),
        layers=tuple(layers[digest] for digest in digests),
        targets=_read_targets(connection, model, tensors),
        assets=dict(assets.fetchall()),
        exact=bool(exact),
    )


def _read_targets(
    connection: sqlite3.Connection, model: int, tensors: dict[str, Tensor]
) -> Targets:
    parts: dict[int, dict[str, Tensor]] = {}
    sql = (
        "SELECT target, part, tensor FROM target_tensor JOIN target ON id = target WHERE model = ?"
    )
    for target, part, tensor in connection.execute(sql, [model]):
        parts.setdefault(target, {})[part] = tensors[tensor]
    targets: Targets = {}
    sql = "SELECT id, position, module, value FROM target WHERE model = ? ORDER BY place"
    for row, position, module, value in connection.execute(sql, [model]):
        target = make_target(msgspec.json.decode(value), parts.get(row, {}))
        modules = targets.setdefault(position, {})
        modules[module] = (*modules.get(module, ()), target)
    return targets


def make_target(settings: dict[str, Any], parts: dict[str, Tensor]) -> Target:
    """A target of its settings and tensors."""
    described = {part: msgspec.structs.asdict(tensor) for part, tensor in parts.items()}
    target: Target = msgspec.convert({**settings, **described}, Target)
    return target
