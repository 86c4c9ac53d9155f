"""What a model is in the catalogue: written whole, removed whole."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable

import msgspec

from blockllm.core import EmbedFunction, Layer, Measurement, Target, Tensor, target_tensors
from blockllm.errors import NameTaken, UnknownModel, ZooError
from blockllm.zoo.digest import target_settings
from blockllm.zoo.rows import make_tensor
from blockllm.zoo.seals import seal_model

Targets = dict[int, dict[str, tuple[Target, ...]]]  # by position, by module


class Record(msgspec.Struct, frozen=True):
    """One model: its layers in order, what it adds at which position, and its asset files."""

    name: str
    kind: str
    family: str
    parent: str | None
    root: str
    dtype: str
    max_context: int
    eos_ids: tuple[int, ...]
    layers: tuple[Layer, ...]
    targets: Targets = {}
    assets: dict[str, str] = {}
    exact: bool = True

    @property
    def format(self) -> str:
        """How the linears are stored: "int8", or as the other weights."""
        return stored_format(self.layers, self.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the model by hash, each once."""
        found = [tensor for layer in self.layers for tensor in layer.tensors.values()]
        for modules in self.targets.values():
            for target in (target for group in modules.values() for target in group):
                found += target_tensors(target).values()
        return {tensor.hash: tensor for tensor in found}


def embedding_rows(record: Record) -> int:
    """How many tokens the model has."""
    function = record.layers[0].function
    assert isinstance(function, EmbedFunction)
    return function.vocab_size


def stored_format(layers: Iterable[Layer], dtype: str) -> str:
    """How a model's linears are stored: "int8", or as its other weights, in `dtype`."""
    stored = (tensor.dtype for layer in layers for tensor in layer.tensors.values())
    return "int8" if "I8" in stored else dtype


def check_free(connection: sqlite3.Connection, name: str) -> None:
    """Raise NameTaken if there is a model of this name."""
    if connection.execute("SELECT 1 FROM model WHERE name = ?", [name]).fetchone():
        raise NameTaken(f"the zoo has a model named {name!r} already; remove it or choose a name")


def find_tensor(connection: sqlite3.Connection, tensor: str) -> Tensor | None:
    """The stored tensor of this hash. Raises CorruptStore when its row is damaged."""
    sql = "SELECT hash, dtype, shape, pack, offset FROM tensor WHERE hash = ?"
    row = connection.execute(sql, [tensor]).fetchone()
    return None if row is None else make_tensor(*row)


def insert(connection: sqlite3.Connection, record: Record) -> None:
    """Add a model. Inside the caller's transaction."""
    check_free(connection, record.name)
    parent = None if record.parent is None else _model_id(connection, record.parent)
    cursor = connection.execute(
        "INSERT INTO model (name, kind, family, parent, root, dtype, max_context, eos_ids, created,"
        " exact) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            *(record.name, record.kind, record.family, parent, record.root, record.dtype),
            *(record.max_context, _json(record.eos_ids), time.time(), int(record.exact)),
        ],
    )
    model = cursor.lastrowid
    assert model is not None
    connection.executemany(
        "INSERT OR IGNORE INTO tensor VALUES (?, ?, ?, ?, ?)",
        [(t.hash, t.dtype, _json(t.shape), t.pack, t.offset) for t in record.tensors().values()],
    )
    for position, layer in enumerate(record.layers):
        _insert_layer(connection, layer)
        connection.execute(
            "INSERT INTO model_layer VALUES (?, ?, ?)", [model, position, layer.digest]
        )
    for position, modules in record.targets.items():
        for module, group in modules.items():
            for place, target in enumerate(group):
                _insert_target(connection, (model, position, module, place), target)
    connection.executemany(
        "INSERT INTO asset VALUES (?, ?, ?)",
        [(model, file, name) for file, name in record.assets.items()],
    )
    seal_model(connection, model)


def insert_measurement(connection: sqlite3.Connection, measurement: Measurement) -> None:
    """Add or replace what was measured about a model; raises UnknownModel."""
    model = _model_id(connection, measurement.model)
    connection.execute(
        "INSERT OR REPLACE INTO measurement VALUES (?, ?, ?, ?)",
        [model, measurement.reference, measurement.text, _json(measurement)],
    )
    seal_model(connection, model)


def delete(connection: sqlite3.Connection, name: str) -> None:
    """Remove a model; its weights stay until `gc`. Raises UnknownModel, and ZooError while adapters
    are based on it.
    """
    model = _model_id(connection, name)
    sql = "SELECT name FROM model WHERE parent = ? ORDER BY name"
    children = [str(row[0]) for row in connection.execute(sql, [model])]
    if children:
        raise ZooError(f"{name!r} is the base of {', '.join(children)}: remove those first")
    connection.execute("DELETE FROM model WHERE id = ?", [model])
    connection.execute("DELETE FROM layer WHERE digest NOT IN (SELECT layer FROM model_layer)")


def _model_id(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT id FROM model WHERE name = ?", [name]).fetchone()
    if row is None:
        raise UnknownModel(f"the zoo has no model named {name!r}")
    return int(row[0])


def _insert_layer(connection: sqlite3.Connection, layer: Layer) -> None:
    function = _json(layer.function)
    sql = "INSERT OR IGNORE INTO layer VALUES (?, ?)"
    if connection.execute(sql, [layer.digest, function]).rowcount:
        connection.executemany(
            "INSERT INTO layer_tensor VALUES (?, ?, ?)",
            [(layer.digest, name, tensor.hash) for name, tensor in layer.tensors.items()],
        )


def _insert_target(
    connection: sqlite3.Connection, where: tuple[int | None, int, str, int], target: Target
) -> None:
    sql = "INSERT INTO target (model, position, module, place, value) VALUES (?, ?, ?, ?, ?)"
    row = connection.execute(sql, [*where, target_settings(target)]).lastrowid
    connection.executemany(
        "INSERT INTO target_tensor VALUES (?, ?, ?)",
        [(row, part, tensor.hash) for part, tensor in target_tensors(target).items()],
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
