"""HTML and SVG built from Python calls: whatever is not markup already is escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = {"meta", "rect", "line", "circle", "polyline", "path", "br"}  # no children, no end tag


class Markup(str):
    """Text that is markup and needs no escaping. Only this file and constants make it."""


Child = str | int | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: str | float | None) -> Markup:
    """An element. Underscores in attribute names stand for dashes, a last one for nothing
    (`class_`); attributes that are None are left out."""
    given = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{html.escape(_text(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID:
        return Markup(f"<{name}{given}/>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one behind the other, text escaped."""
    return Markup("".join(_child(child) for child in children))


def _child(child: Child) -> str:
    if isinstance(child, Markup):
        return child
    if isinstance(child, str):
        return html.escape(child)
    return html.escape(str(child)) if isinstance(child, int) else join(child)


def _text(value: str | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
