"""Every model in brief: its layers, and the modules that it changes. Adapters of one base mostly
have equal outlines, so what follows from outlines costs little however many adapters there are."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import NamedTuple

from blockllm.errors import CorruptStore
from blockllm.zoo.rows import Index, decode

_OUTLINES = (
    "SELECT id, name,"
    " (SELECT json_group_array(json_array(position, CAST(layer AS TEXT)))"
    " FROM model_layer WHERE model = m.id),"
    " (SELECT json_group_array(json_array(position, CAST(module AS TEXT)))"
    " FROM target WHERE model = m.id)"
    " FROM model m ORDER BY created, id"
)


class Outline(NamedTuple):
    """A model's layer digests in order, and the modules that it changes by the layer's position."""

    layers: tuple[str, ...]
    changed: tuple[tuple[int, frozenset[str]], ...] = ()

    def modules(self, position: int) -> frozenset[str]:
        """The modules that the model changes at a layer."""
        return dict(self.changed).get(position, frozenset())


def read_outlines(
    connection: sqlite3.Connection, check: Callable[[Sequence[str]], object]
) -> tuple[dict[str, Outline], dict[str, str]]:
    """The outlines of all models, oldest first, and why others cannot be read. Equal outlines are
    one object. `check` raises CorruptStore for digests that make no model.
    """
    known: dict[tuple[str, str], Outline | str] = {}
    found: dict[str, Outline] = {}
    damaged: dict[str, str] = {}
    for row, name, layers, modules in connection.execute(_OUTLINES):
        if not isinstance(name, str) or not name:
            damaged[f"(row {row})"] = f"table model, row {row}: its name is damaged"
            continue
        if (layers, modules) not in known:
            known[layers, modules] = _outline(layers, modules, check)
        outline = known[layers, modules]
        if isinstance(outline, str):
            damaged[name] = f"model {name!r} is damaged: {outline}; remove it and add it again"
        else:
            found[name] = outline
    return found, damaged


def _outline(layers: str, modules: str, check: Callable[[Sequence[str]], object]) -> Outline | str:
    """An outline, or why there is none."""
    places = list[tuple[Index, str]]
    try:
        stack = sorted(decode(layers, places, "table model_layer"))
        digests = tuple(digest for _, digest in stack)
        if [position for position, _ in stack] != list(range(len(stack))):
            raise CorruptStore("table model_layer: positions are not in a row")
        check(digests)
        changed: dict[int, set[str]] = {}
        for position, module in decode(modules, places, "table target"):
            changed.setdefault(position, set()).add(module)
    except CorruptStore as error:
        return str(error)
    changes = ((position, frozenset(changed[position])) for position in sorted(changed))
    return Outline(digests, tuple(changes))
