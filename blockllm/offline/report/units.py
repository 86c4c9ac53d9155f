"""Numbers as people read them."""

from __future__ import annotations


def size_text(nbytes: float) -> str:
    """`1.5 GB`; decimal units, as disks are sold."""
    size, units = float(nbytes), iter(("B", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"


def time_text(seconds: float | None) -> str:
    """`1.5 ms`; `?` for what was not measured."""
    if seconds is None:
        return "?"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def number_text(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def share_text(value: float) -> str:
    """A share as percent."""
    return f"{value:.1%}"


def counted(count: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
