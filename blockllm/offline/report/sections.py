"""What all sections are made of, and those about the bytes of the whole zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from blockllm.offline.report.facts import TIERS, Facts
from blockllm.offline.report.markup import Child, Markup, join, tag
from blockllm.offline.report.plots import BarPiece, bar
from blockllm.offline.report.units import counted, size_text

Row = tuple[Child, ...]
BarRow = tuple[Child, Markup, Child]
Item = TypeVar("Item")
Shown = Callable[[Sequence[Item]], Markup]

# classes of style.py, each for content that is wider than these pixels
_HINTS = {"always": 1000, "wide": 700, "middle": 500, "narrow": 320}


def section(title: str, caption: Child, *content: Child) -> Markup:
    """A card of the page."""
    return tag("section", tag("h2", title), tag("p", caption), *content)


def table(columns: Sequence[str], rows: Iterable[Row], title: str = "The numbers") -> Markup:
    """Numbers behind a plot, folded away."""
    head = tag("tr", [tag("th", column, scope="col") for column in columns])
    body = [tag("tr", [tag("td", cell) for cell in row]) for row in rows]
    whole = tag("table", tag("thead", head), tag("tbody", body))
    return tag("details", tag("summary", title), sideways(whole, 110 * len(columns)))


def sideways(content: Markup, width: float) -> Markup:
    """Content of about this many pixels; it scrolls where the page is narrower, which is said."""
    scrolling = tag("div", content, class_="scroll", tabindex=0)
    name = next((name for name, least in _HINTS.items() if width > least), None)
    if name is None:
        return scrolling
    words = "wider than the page: scroll sideways →"
    return join((tag("p", words, class_=f"hint {name}"), scrolling))


def folded(items: Sequence[Item], most: int, noun: str, show: Shown[Item]) -> Markup:
    """The first `most` items, and the others behind a line that counts them."""
    rest = items[most:]
    if not rest:
        return show(items)
    more = tag("details", tag("summary", counted(len(rest), f"more {noun}")), show(rest))
    return join((show(items[:most]), more))


def named(names: Sequence[str], most: int = 8) -> str:
    """`a, b and 3 more`: names in a space that does not grow with the zoo."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def key(entries: Iterable[tuple[str, str]]) -> Markup:
    """What the colours mean: CSS class and words."""
    return tag(
        "div", [tag("span", tag("i", class_=c), words) for c, words in entries], class_="key"
    )


def bars(rows: Iterable[BarRow]) -> Markup:
    """Rows of name, bar and value."""
    cells = [
        (tag("div", name, class_="name"), plot, tag("div", value, class_="value"))
        for name, plot, value in rows
    ]
    return tag("div", cells, class_="rows")


def totals(facts: Facts) -> Markup:
    """The three ways to keep the same models."""
    ways = (
        ("a copy for every model", facts.separate, "pale"),
        ("a file for every checkpoint and adapter", facts.files, "pale"),
        ("this zoo", facts.stored, "shared"),
    )
    most = max(facts.separate, 1)
    rows = [
        (name, bar([BarPiece(name, size, colour)], most, size_text), size_text(size))
        for name, size, colour in ways
    ]
    return section(
        "Bytes of weights",
        "The same models kept in three ways. In the second, adapters share their base but "
        "checkpoints share nothing: what a folder of downloads takes.",
        bars(rows),
    )


def tiers(facts: Facts) -> Markup:
    """Stored bytes against separate copies, tier by tier."""
    most = max((tier.separate for tier in facts.tiers), default=1)
    rows: list[BarRow] = []
    for tier in facts.tiers:
        name = [tier.tier, tag("small", f"{counted(len(tier.models), 'model')}")]
        separate = bar([BarPiece("separate copies", tier.separate, "pale")], most, size_text)
        rows.append((name, separate, size_text(tier.separate)))
        stored = bar([BarPiece("in this zoo", tier.stored, "shared")], most, size_text)
        rows.append((tag("small", TIERS[tier.tier]), stored, size_text(tier.stored)))
    numbers = [
        (t.tier, named(t.models), *map(size_text, (t.separate, t.stored))) for t in facts.tiers
    ]
    return section(
        "Bytes by tier of sharing",
        "Tiers in order: what a tier stores is what its models need beyond the tiers above it. "
        "Tiers below delta lose something; the next plot says how much.",
        key((("pale", "separate copies"), ("shared", "in this zoo"))),
        bars(rows),
        table(("tier", "models", "separate", "stored"), numbers),
    )
