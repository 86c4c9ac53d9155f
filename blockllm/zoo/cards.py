"""What listings say about the models of a zoo, from one state of the catalogue."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from blockllm.core import Layer, Measurement, ModelCard
from blockllm.errors import CorruptStore
from blockllm.zoo.records import stored_format
from blockllm.zoo.rows import MODEL_COLUMNS, ModelRow, check, decode
from blockllm.zoo.snapshot import Snapshot

_TARGETS = (
    "SELECT model.name, tensor FROM model JOIN target ON model = model.id"
    " JOIN target_tensor ON target = target.id"
)


def read_cards(connection: sqlite3.Connection) -> list[ModelCard]:
    """All models, oldest first, with the bytes that each shares and owns. Of one whose rows are
    damaged the card says that and little else."""
    snapshot = Snapshot(connection)
    sizes = _read_sizes(connection, snapshot)
    losses, damaged = _read_measurements(connection)
    damaged |= snapshot.unread
    cards = []
    for values in connection.execute(f"SELECT {MODEL_COLUMNS} ORDER BY m.created, m.id"):
        name = values[1] if isinstance(values[1], str) and values[1] else f"(row {values[0]})"
        try:
            row = check(values, ModelRow, "model")
            if name in damaged:
                raise CorruptStore(damaged[name])
            cards.append(_card(row, snapshot, sizes[name], losses.get(name, ())))
        except CorruptStore as error:
            cards.append(ModelCard(name, "damaged", "", damaged=str(error)))
    return cards


def _card(
    row: ModelRow, snapshot: Snapshot, size: _Size, loss: tuple[Measurement, ...]
) -> ModelCard:
    blocks = snapshot.blocks(row.name)
    layers = (snapshot.layers[digest] for digest in snapshot.outlines[row.name].layers)
    return ModelCard(
        name=row.name,
        kind=row.kind,
        family=row.family,
        parent=row.parent,
        root=row.root,
        dtype=row.dtype,
        format=stored_format(layers, row.dtype),
        exact=bool(row.exact),
        num_blocks=len(blocks),
        num_shared_blocks=sum(snapshot.riders[block.id] > 1 for block in blocks),
        total_bytes=size.total,
        own_bytes=size.own,
        shared_bytes=size.total - size.own,
        max_context=row.max_context,
        created=row.created,
        loss=loss,
    )


class _Size(NamedTuple):
    """Bytes of a model's tensors: of all, and of those that no other model has."""

    total: int
    own: int


def _read_sizes(connection: sqlite3.Connection, snapshot: Snapshot) -> dict[str, _Size]:
    # models with equal layers are counted together: adapters differ in few tensors
    stacks = {name: outline.layers for name, outline in snapshot.outlines.items()}
    riders = Counter(stacks.values())
    stacked = {stack: _tensors(snapshot.layers[digest] for digest in stack) for stack in riders}
    changes: dict[str, set[str]] = {name: set() for name in stacks}
    for name, tensor in connection.execute(_TARGETS):
        if name in stacks and tensor not in stacked[stacks[name]]:
            changes[name].add(tensor)
    owners = Counter(tensor for tensors in changes.values() for tensor in tensors)
    for stack, count in riders.items():
        for tensor in stacked[stack]:
            owners[tensor] += count

    def measure(tensors: set[str]) -> _Size:
        known = (snapshot.tensors.get(tensor) for tensor in tensors)
        sizes = [(tensor.hash, tensor.nbytes) for tensor in known if tensor]
        own = sum(nbytes for tensor, nbytes in sizes if owners[tensor] == 1)
        return _Size(sum(nbytes for _, nbytes in sizes), own)

    below = {stack: measure(tensors) for stack, tensors in stacked.items()}
    found = {}
    for name, stack in stacks.items():
        above = measure(changes[name])
        found[name] = _Size(below[stack].total + above.total, below[stack].own + above.own)
    return found


def _tensors(layers: Iterable[Layer]) -> set[str]:
    return {tensor.hash for layer in layers for tensor in layer.tensors.values()}


def _read_measurements(
    connection: sqlite3.Connection,
) -> tuple[dict[str, tuple[Measurement, ...]], dict[str, str]]:
    """What was measured by model, and of which models that cannot be read."""
    found: dict[str, list[Measurement]] = {}
    damaged: dict[str, str] = {}
    sql = "SELECT name, value FROM measurement JOIN model ON id = model"
    for name, value in connection.execute(sql):
        try:
            found.setdefault(name, []).append(decode(value, Measurement, "table measurement"))
        except CorruptStore as error:
            damaged[name] = f"what was measured of it: {error}; measure it again"
    losses = {name: tuple(sorted(made, key=lambda m: m.created)) for name, made in found.items()}
    return losses, damaged
