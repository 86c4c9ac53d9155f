"""One consistent state of the catalogue, read whole: chains and cards follow from it."""

from __future__ import annotations

import sqlite3
from collections import Counter
from typing import Literal, NamedTuple

import msgspec

from blockllm.core import (
    Block,
    Chain,
    ChainEntry,
    Delta,
    Function,
    Layer,
    LoraTarget,
    Measurement,
    ModelCard,
    Tensor,
)
from blockllm.errors import CorruptStore, UnknownModel
from blockllm.zoo.digest import delta_id
from blockllm.zoo.records import Record

_MODELS = (
    "SELECT m.id, m.name, m.kind, m.family, p.name, m.root, m.dtype, m.max_context, m.eos_ids,"
    " m.created FROM model m LEFT JOIN model p ON p.id = m.parent ORDER BY m.created, m.id"
)


class Snapshot:
    """All models of a zoo at one moment. Equal layers and blocks are one object."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.tensors = _read_tensors(connection)
        self.layers, self._block_of = _read_layers(connection, self.tensors)
        self.records: dict[str, Record] = {}
        self._created: dict[str, float] = {}
        self._loss = _read_measurements(connection)
        for row in connection.execute(_MODELS).fetchall():
            record = _read_record(connection, row, self.layers, self.tensors)
            self.records[record.name] = record
            self._created[record.name] = row[-1]

    @property
    def blocks(self) -> list[Block]:
        """Every block once."""
        return list({block.id: block for block in self._block_of.values()}.values())

    def record(self, name: str) -> Record:
        """What was added under a name; raises UnknownModel."""
        if name not in self.records:
            raise UnknownModel(f"the zoo has no model named {name!r}")
        return self.records[name]

    def chain(self, name: str) -> Chain:
        """The model as blocks and deltas; raises UnknownModel."""
        record = self.record(name)
        entries: list[ChainEntry] = []
        position = 0
        while position < len(record.layers):
            block = self._block_of[record.layers[position].digest]
            if record.layers[position : position + len(block.layers)] != block.layers:
                raise CorruptStore(f"block {block.id} does not fit into model {name!r}")
            entries.append(ChainEntry(block, _delta(record, position, len(block.layers))))
            position += len(block.layers)
        return Chain(name, tuple(entries), record.max_context, record.eos_ids, record.parent)

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
        exact=record.format != "int8",
        num_blocks=size.num_blocks,
        num_shared_blocks=size.num_shared,
        total_bytes=size.total,
        own_bytes=size.own,
        shared_bytes=size.total - size.own,
        max_context=record.max_context,
        created=created,
        loss=loss,
    )


def _delta(record: Record, start: int, length: int) -> Delta | None:
    targets: dict[str, LoraTarget] = {}
    for index in range(length):
        for module, target in record.targets.get(start + index, {}).items():
            targets[f"{index}.{module}"] = target
    return Delta(delta_id(targets), targets) if targets else None


def _read_tensors(connection: sqlite3.Connection) -> dict[str, Tensor]:
    decoder = msgspec.json.Decoder(tuple[int, ...])
    rows = connection.execute("SELECT hash, dtype, shape, pack, offset FROM tensor")
    return {row[0]: Tensor(row[0], row[1], decoder.decode(row[2]), *row[3:]) for row in rows}


def _read_layers(
    connection: sqlite3.Connection, tensors: dict[str, Tensor]
) -> tuple[dict[str, Layer], dict[str, Block]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for digest, name, tensor in connection.execute("SELECT * FROM layer_tensor"):
        parts.setdefault(digest, {})[name] = tensors[tensor]
    decoder: msgspec.json.Decoder[Function] = msgspec.json.Decoder(Function)
    layers: dict[str, Layer] = {}
    members: dict[str, list[Layer]] = {}
    sql = "SELECT digest, function, block FROM layer ORDER BY block, place"
    for digest, function, block in connection.execute(sql):
        layers[digest] = Layer(digest, decoder.decode(function), parts[digest])
        members.setdefault(block, []).append(layers[digest])
    blocks = [Block(block, tuple(run)) for block, run in members.items()]
    return layers, {layer.digest: block for block in blocks for layer in block.layers}


def _read_measurements(connection: sqlite3.Connection) -> dict[str, list[Measurement]]:
    decoder = msgspec.json.Decoder(Measurement)
    found: dict[str, list[Measurement]] = {}
    for (value,) in connection.execute("SELECT value FROM measurement"):
        measurement = decoder.decode(value)
        found.setdefault(measurement.model, []).append(measurement)
    return {name: sorted(made, key=lambda m: m.created) for name, made in found.items()}


def _read_record(
    connection: sqlite3.Connection,
    row: tuple[int, str, Literal["full", "lora"], str, str | None, str, str, int, str, float],
    layers: dict[str, Layer],
    tensors: dict[str, Tensor],
) -> Record:
    model, name, kind, family, parent, root, dtype, max_context, eos_ids, _ = row
    sql = "SELECT layer FROM model_layer WHERE model = ? ORDER BY position"
    digests = [found[0] for found in connection.execute(sql, [model])]
    targets: dict[int, dict[str, LoraTarget]] = {}
    sql = "SELECT position, module, a, b, scale, bias FROM target WHERE model = ?"
    for position, module, a, b, scale, bias in connection.execute(sql, [model]):
        extra = tensors[bias] if bias else None
        target = LoraTarget(tensors[a], tensors[b], scale, extra)
        targets.setdefault(position, {})[module] = target
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
        targets=targets,
        assets=dict(assets.fetchall()),
    )
