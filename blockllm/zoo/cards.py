"""What listings say about the models of a zoo, from one state of the catalogue."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from blockllm.core import Layer, Measurement, ModelCard
from blockllm.zoo.records import stored_format
from blockllm.zoo.snapshot import Snapshot

_MODELS = (
    "SELECT m.name, m.kind, m.family, p.name, m.root, m.dtype, m.max_context, m.created, m.exact"
    " FROM model m LEFT JOIN model p ON p.id = m.parent ORDER BY m.created, m.id"
)
_TARGETS = (
    "SELECT model.name, tensor FROM model JOIN target ON model = model.id"
    " JOIN target_tensor ON target = target.id"
)


def read_cards(connection: sqlite3.Connection) -> list[ModelCard]:
    """All models, oldest first, with the bytes that each shares and owns."""
    snapshot = Snapshot(connection)
    sizes = _read_sizes(connection, snapshot)
    losses = _read_measurements(connection)
    cards = []
    for name, kind, family, parent, root, dtype, max_context, created, exact in connection.execute(
        _MODELS
    ):
        size, blocks = sizes[name], snapshot.blocks(name)
        layers = (snapshot.layers[digest] for digest in snapshot.outlines[name].layers)
        cards.append(
            ModelCard(
                name=name,
                kind=kind,
                family=family,
                parent=parent,
                root=root,
                dtype=dtype,
                format=stored_format(layers, dtype),
                exact=bool(exact),
                num_blocks=len(blocks),
                num_shared_blocks=sum(snapshot.riders[block.id] > 1 for block in blocks),
                total_bytes=size.total,
                own_bytes=size.own,
                shared_bytes=size.total - size.own,
                max_context=max_context,
                created=created,
                loss=losses.get(name, ()),
            )
        )
    return cards


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
        if tensor not in stacked[stacks[name]]:
            changes[name].add(tensor)
    owners = Counter(tensor for tensors in changes.values() for tensor in tensors)
    for stack, count in riders.items():
        for tensor in stacked[stack]:
            owners[tensor] += count

    def measure(tensors: set[str]) -> _Size:
        sizes = [(tensor, snapshot.tensors[tensor].nbytes) for tensor in tensors]
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


def _read_measurements(connection: sqlite3.Connection) -> dict[str, tuple[Measurement, ...]]:
    decoder = msgspec.json.Decoder(Measurement)
    found: dict[str, list[Measurement]] = {}
    for (value,) in connection.execute("SELECT value FROM measurement"):
        measurement = decoder.decode(value)
        found.setdefault(measurement.model, []).append(measurement)
    return {name: tuple(sorted(made, key=lambda m: m.created)) for name, made in found.items()}
