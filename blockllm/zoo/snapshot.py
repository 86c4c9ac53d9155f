"""One consistent state of the catalogue: chains and cards follow from it.

Each part is read when it is first asked for, so that a command pays for the models it needs. What
depends on all models, as blocks do, follows from their outlines.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from functools import cached_property
from typing import Any, get_args

import msgspec

from blockllm.core import Block, Chain, Function, Layer, Target, Tensor
from blockllm.errors import UnknownModel
from blockllm.zoo.blocks import Blocks
from blockllm.zoo.outline import Outline, read_outlines
from blockllm.zoo.records import Record, Targets

_MODEL = (
    "SELECT m.id, m.kind, m.family, p.name, m.root, m.dtype, m.max_context, m.eos_ids, m.exact"
    " FROM model m LEFT JOIN model p ON p.id = m.parent WHERE m.name = ?"
)
_TENSOR = "tensor.hash, tensor.dtype, tensor.shape, tensor.pack, tensor.offset"
_KINDS = {kind.__struct_config__.tag: kind for kind in get_args(Target)}


class Snapshot:
    """The models of a zoo at one moment; lives as long as the connection's transaction. Equal
    layers and blocks are one object."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._read: dict[str, Record] = {}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by hash, also those of no model."""
        rows = self._connection.execute(f"SELECT {_TENSOR} FROM tensor")
        return {row[0]: _tensor(*row) for row in rows}

    @cached_property
    def layers(self) -> dict[str, Layer]:
        """All layers by digest."""
        return _read_layers(self._connection)

    @property
    def records(self) -> dict[str, Record]:
        """All models, oldest first."""
        return {name: self.record(name) for name in self.outlines}

    @property
    def full_roots(self) -> dict[str, str]:
        """Where the full checkpoints were added from, by name."""
        rows = self._connection.execute("SELECT name, root FROM model WHERE kind = 'full'")
        return dict(rows.fetchall())

    @cached_property
    def outlines(self) -> dict[str, Outline]:
        """All models in brief, oldest first."""
        return read_outlines(self._connection)

    @cached_property
    def _blocks(self) -> Blocks:
        return Blocks(self.outlines.values(), self.layers)

    def record(self, name: str) -> Record:
        """What was added under a name; raises UnknownModel."""
        if name not in self._read:
            self._read[name] = self._read_record(name)
        return self._read[name]

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
        entries = self._blocks.entries(record)
        return Chain(name, entries, record.max_context, record.eos_ids, record.parent)

    def blocks(self, name: str) -> list[Block]:
        """The model's blocks in order."""
        return self._blocks.of(self.outlines[name])

    @cached_property
    def riders(self) -> Counter[str]:
        """How many models have a block, by its id."""
        models = Counter(self.outlines.values())
        found: Counter[str] = Counter()
        for outline, count in models.items():
            for block in dict.fromkeys(block.id for block in self._blocks.of(outline)):
                found[block] += count
        return found

    def _read_record(self, name: str) -> Record:
        row = self._connection.execute(_MODEL, [name]).fetchone()
        if row is None:
            raise UnknownModel(f"the zoo has no model named {name!r}")
        model, kind, family, parent, root, dtype, max_context, eos_ids, exact = row
        sql = "SELECT layer FROM model_layer WHERE model = ? ORDER BY position"
        digests = [found[0] for found in self._connection.execute(sql, [model])]
        assets = self._connection.execute("SELECT file, name FROM asset WHERE model = ?", [model])
        return Record(
            name=name,
            kind=kind,
            family=family,
            parent=parent,
            root=root,
            dtype=dtype,
            max_context=max_context,
            eos_ids=msgspec.json.decode(eos_ids, type=tuple[int, ...]),
            layers=tuple(self.layers[digest] for digest in digests),
            targets=_read_targets(self._connection, model),
            assets=dict(assets.fetchall()),
            exact=bool(exact),
        )


_decode_shape = msgspec.json.Decoder(tuple[int, ...]).decode


def _tensor(hash: str, dtype: str, shape: str, pack: str, offset: int) -> Tensor:
    return Tensor(hash, dtype, _decode_shape(shape), pack, offset)


def _read_layers(connection: sqlite3.Connection) -> dict[str, Layer]:
    parts: dict[str, dict[str, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    sql = f"SELECT layer, name, {_TENSOR} FROM layer_tensor JOIN tensor ON hash = tensor"
    for digest, name, *row in connection.execute(sql):
        if row[0] not in tensors:
            tensors[row[0]] = _tensor(*row)
        parts.setdefault(digest, {})[name] = tensors[row[0]]
    decoder: msgspec.json.Decoder[Function] = msgspec.json.Decoder(Function)
    rows = connection.execute("SELECT digest, function FROM layer")
    return {
        digest: Layer(digest, decoder.decode(function), parts[digest]) for digest, function in rows
    }


def _read_targets(connection: sqlite3.Connection, model: int) -> Targets:
    parts: dict[int, dict[str, Tensor]] = {}
    sql = (
        f"SELECT target, part, {_TENSOR} FROM target JOIN target_tensor ON target = target.id"
        " JOIN tensor ON hash = tensor WHERE model = ?"
    )
    for target, part, *row in connection.execute(sql, [model]):
        parts.setdefault(target, {})[part] = _tensor(*row)
    targets: Targets = {}
    sql = "SELECT id, position, module, value FROM target WHERE model = ? ORDER BY place"
    for row_id, position, module, value in connection.execute(sql, [model]):
        modules = targets.setdefault(position, {})
        made = make_target(msgspec.json.decode(value), parts.get(row_id, {}))
        modules[module] = (*modules.get(module, ()), made)
    return targets


def make_target(settings: dict[str, Any], parts: dict[str, Tensor]) -> Target:
    """A target of its settings and tensors."""
    # converting to the whole union takes thirty times as long
    kind = _KINDS.get(str(settings.get("kind")), Target)
    target: Target = msgspec.convert({**settings, **parts}, kind)
    return target
