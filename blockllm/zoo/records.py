"""What a model is in the catalogue: written whole, removed whole, blocks derived anew each time."""

from __future__ import annotations

import sqlite3
import time
from typing import Literal

import msgspec

from blockllm.core import Layer, LoraTarget, Measurement, Tensor
from blockllm.errors import NameTaken, UnknownModel, ZooError
from blockllm.zoo.digest import block_id
from blockllm.zoo.partition import Step, partition

Targets = dict[int, dict[str, LoraTarget]]


class Record(msgspec.Struct, frozen=True):
    """One model: its layers in order, what it adds at which position, and its asset files."""

    name: str
    kind: Literal["full", "lora"]
    family: str
    parent: str | None
    root: str
    dtype: str
    max_context: int
    eos_ids: tuple[int, ...]
    layers: tuple[Layer, ...]
    targets: Targets = {}
    assets: dict[str, str] = {}

    @property
    def format(self) -> str:
        """How the linears are stored: "int8", or as the other weights."""
        stored = (t.dtype for layer in self.layers for t in layer.tensors.values())
        return "int8" if "I8" in stored else self.dtype

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the model by hash, each once."""
        found = [tensor for layer in self.layers for tensor in layer.tensors.values()]
        for modules in self.targets.values():
            for target in modules.values():
                found += [part for part in (target.a, target.b, target.bias) if part]
        return {tensor.hash: tensor for tensor in found}


def check_free(connection: sqlite3.Connection, name: str) -> None:
    """Raise NameTaken if there is a model of this name."""
    if connection.execute("SELECT 1 FROM model WHERE name = ?", [name]).fetchone():
        raise NameTaken(f"the zoo has a model named {name!r} already; remove it or choose a name")


def find_tensor(connection: sqlite3.Connection, tensor: str) -> Tensor | None:
    """The stored tensor of this hash."""
    sql = "SELECT dtype, shape, pack, offset FROM tensor WHERE hash = ?"
    row = connection.execute(sql, [tensor]).fetchone()
    if row is None:
        return None
    return Tensor(tensor, row[0], msgspec.json.decode(row[1], type=tuple[int, ...]), *row[2:])


def insert(connection: sqlite3.Connection, record: Record) -> None:
    """Add a model and cut blocks anew. Inside the caller's transaction."""
    check_free(connection, record.name)
    parent = None if record.parent is None else _model_id(connection, record.parent)
    cursor = connection.execute(
        "INSERT INTO model (name, kind, family, parent, root, dtype, max_context, eos_ids, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *(record.name, record.kind, record.family, parent, record.root, record.dtype),
            *(record.max_context, _json(record.eos_ids), time.time()),
        ],
    )
    model = cursor.lastrowid
    connection.executemany(
        "INSERT OR IGNORE INTO tensor VALUES (?, ?, ?, ?, ?)",
        [(t.hash, t.dtype, _json(t.shape), t.pack, t.offset) for t in record.tensors().values()],
    )
    for position, layer in enumerate(record.layers):
        _insert_layer(connection, layer)
        connection.execute(
            "INSERT INTO model_layer VALUES (?, ?, ?)", [model, position, layer.digest]
        )
    connection.executemany(
        "INSERT INTO target VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (model, position, module, t.a.hash, t.b.hash, t.bias.hash if t.bias else None, t.scale)
            for position, modules in record.targets.items()
            for module, t in modules.items()
        ],
    )
    connection.executemany(
        "INSERT INTO asset VALUES (?, ?, ?)",
        [(model, file, name) for file, name in record.assets.items()],
    )
    _cut_blocks(connection)


def insert_measurement(connection: sqlite3.Connection, measurement: Measurement) -> None:
    """Add or replace what was measured about a model; raises UnknownModel."""
    model = _model_id(connection, measurement.model)
    connection.execute(
        "INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?)",
        [model, measurement.reference, measurement.text, _json(measurement)],
    )


def delete(connection: sqlite3.Connection, name: str) -> None:
    """Remove a model and cut blocks anew; its weights stay until `gc`. Raises UnknownModel, and
    ZooError while adapters are based on it.
    """
    model = _model_id(connection, name)
    sql = "SELECT name FROM model WHERE parent = ? ORDER BY name"
    children = [row[0] for row in connection.execute(sql, [model])]
    if children:
        raise ZooError(f"{name!r} is the base of {', '.join(children)}: remove those first")
    connection.execute("DELETE FROM model WHERE id = ?", [model])
    connection.execute("DELETE FROM layer WHERE digest NOT IN (SELECT layer FROM model_layer)")
    _cut_blocks(connection)


def read_assets(connection: sqlite3.Connection, name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Stored names of a model's own asset files and of its base's; raises UnknownModel."""
    model = _model_id(connection, name)
    sql = "SELECT file, name FROM asset WHERE model = ?"
    own = dict(connection.execute(sql, [model]).fetchall())
    sql = "SELECT file, name FROM asset WHERE model = (SELECT parent FROM model WHERE id = ?)"
    return own, dict(connection.execute(sql, [model]).fetchall())


def _model_id(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT id FROM model WHERE name = ?", [name]).fetchone()
    if row is None:
        raise UnknownModel(f"the zoo has no model named {name!r}")
    return int(row[0])


def _insert_layer(connection: sqlite3.Connection, layer: Layer) -> None:
    # block and place are filled by _cut_blocks before the transaction ends
    function = _json(layer.function)
    sql = "INSERT OR IGNORE INTO layer VALUES (?, ?, '', 0)"
    if connection.execute(sql, [layer.digest, function]).rowcount:
        connection.executemany(
            "INSERT INTO layer_tensor VALUES (?, ?, ?)",
            [(layer.digest, name, tensor.hash) for name, tensor in layer.tensors.items()],
        )


def _cut_blocks(connection: sqlite3.Connection) -> None:
    rows = connection.execute(
        "SELECT model, layer, json_extract(function, '$.kind'), EXISTS ("
        "  SELECT 1 FROM target t WHERE t.model = l.model AND t.position = l.position)"
        " FROM model_layer l JOIN layer ON digest = layer ORDER BY model, l.position"
    )
    models: dict[int, list[Step]] = {}
    for model, digest, kind, has_delta in rows:
        models.setdefault(model, []).append(Step(digest, kind, bool(has_delta)))
    places = [
        (block_id(run), place, digest)
        for run in partition(models.values())
        for place, digest in enumerate(run)
    ]
    connection.executemany(
        "UPDATE layer SET block = ?1, place = ?2"
        " WHERE digest = ?3 AND (block != ?1 OR place != ?2)",
        places,
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
