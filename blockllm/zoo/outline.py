"""Every model in brief: its layers, and the modules that it changes. Adapters of one base mostly
have equal outlines, so what follows from outlines costs little however many adapters there are."""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

import msgspec

_OUTLINES = (
    "SELECT name,"
    " (SELECT json_group_array(json_array(position, layer)) FROM model_layer WHERE model = m.id),"
    " (SELECT json_group_array(json_array(position, module)) FROM target WHERE model = m.id)"
    " FROM model m ORDER BY created, id"
)


class Outline(NamedTuple):
    """A model's layer digests in order, and the modules that it changes by the layer's position."""

    layers: tuple[str, ...]
    changed: tuple[tuple[int, frozenset[str]], ...] = ()

    def modules(self, position: int) -> frozenset[str]:
        """The modules that the model changes at a layer."""
        return dict(self.changed).get(position, frozenset())


def read_outlines(connection: sqlite3.Connection) -> dict[str, Outline]:
    """The outlines of all models, oldest first. Equal outlines are one object."""
    known: dict[tuple[str, str], Outline] = {}
    found = {}
    for name, layers, modules in connection.execute(_OUTLINES):
        if (layers, modules) not in known:
            known[layers, modules] = _outline(layers, modules)
        found[name] = known[layers, modules]
    return found


def _outline(layers: str, modules: str) -> Outline:
    decoder = msgspec.json.Decoder(list[tuple[int, str]])
    changed: dict[int, set[str]] = {}
    for position, module in decoder.decode(modules):
        changed.setdefault(position, set()).add(module)
    return Outline(
        layers=tuple(digest for _, digest in sorted(decoder.decode(layers))),
        changed=tuple((position, frozenset(changed[position])) for position in sorted(changed)),
    )
