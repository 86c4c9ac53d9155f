"""Plots as inline SVG: pure functions of numbers. Colours are CSS variables of style.py, so that
a plot follows the page into the dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from blockllm.offline.report.markup import Markup, tag

Number = Callable[[float], str]


class BarPiece(NamedTuple):
    """A piece of a bar."""

    name: str
    value: float
    colour: str  # CSS class


def bar(parts: Sequence[BarPiece], most: float, show: Number) -> Markup:
    """One horizontal bar as wide as the page allows; `most` fills it."""
    pieces, start = [], 0.0
    for part in parts:
        width = 100 * part.value / most if most else 0.0
        note = tag("title", f"{part.name}: {show(part.value)}")
        place = {"x": f"{start:.4g}%", "width": f"{width:.4g}%", "height": "100%"}
        pieces.append(tag("g", note, tag("rect", class_=part.colour, **place)))
        start += width
    label = ", ".join(f"{part.name} {show(part.value)}" for part in parts)
    return tag("svg", pieces, class_="bar", role="img", aria_label=label)


def strip(cells: Sequence[tuple[str, str, bool]]) -> Markup:
    """Equal cells side by side: CSS class, note, whether it is marked."""
    width = 100 / max(len(cells), 1)
    pieces = []
    for index, (colour, note, marked) in enumerate(cells):
        x = index * width
        size = {"x": f"{x:.4g}%", "width": f"{0.94 * width:.4g}%"}
        mark = tag("rect", class_="delta", y="0", height="6", **size) if marked else ""
        pieces.append(
            tag("g", tag("title", note), tag("rect", class_=colour, height="100%", **size), mark)
        )
    return tag("svg", pieces, class_="strip", role="img", aria_label=f"{len(cells)} layers")


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    show: Number,
    least: float = 0.0,
) -> Markup:
    """Cells from `least` (pale) to the largest value; numbers in them where there is room."""
    known = [value for line in values for value in line if value is not None]
    most = max(known, default=0.0)
    roomy, side, height = _cells(columns)
    left = 8 + 7.2 * max(map(len, rows), default=0)
    longest = max(map(len, columns), default=0)
    top = 14 + (4.2 if roomy else 7.2) * longest
    parts = [
        _column_label(left + (i + 0.5) * side, top - 6, name, -35 if roomy else -90)
        for i, name in enumerate(columns)
    ]
    for row, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + row * height
        parts.append(tag("text", name, x=left - 6, y=y + height / 2 + 4, text_anchor="end"))
        for column, value in enumerate(line):
            share = 0.0 if value is None or most <= least else (value - least) / (most - least)
            text = "" if value is None else show(value)
            cell = [tag("title", f"{name}, {columns[column]}: {text or 'not compared'}")]
            x, box = left + column * side, {"width": side - 2, "height": height - 2}
            heat = f"{0.06 + 0.94 * min(max(share, 0.0), 1.0):.3f}"
            colour = "none" if value is None else "heat"
            cell.append(tag("rect", class_=colour, x=x, y=y, rx=2, fill_opacity=heat, **box))
            if roomy and text:
                ink = "over" if share > 0.5 else "cell"
                middle = {"x": x + side / 2 - 1, "y": y + height / 2 + 3}
                cell.append(tag("text", text, text_anchor="middle", class_=ink, **middle))
            parts.append(tag("g", cell))
    size = {"width": heatmap_width(rows, columns), "height": top + height * len(rows) + 4}
    return tag("svg", parts, class_="heatmap", role="img", aria_label="heat map", **size)


def heatmap_width(rows: Sequence[str], columns: Sequence[str]) -> float:
    """Pixels that a heat map is wide."""
    roomy, side, _ = _cells(columns)
    # the last column's label leans over
    overhang = 6 * max(map(len, columns), default=0) if roomy else 0
    return 8 + 7.2 * max(map(len, rows), default=0) + side * len(columns) + overhang


def _cells(columns: Sequence[str]) -> tuple[bool, int, int]:
    """Whether cells hold numbers, and their width and height."""
    return (True, 58, 30) if len(columns) <= 12 else (False, 14, 14)


def _column_label(x: float, y: float, name: str, angle: int) -> Markup:
    across = x if angle > -90 else x + 4  # half of the letters' height
    place = f"translate({across:.1f} {y:.1f}) rotate({angle})"
    return tag("text", name, transform=place, text_anchor="start")


class Curve(NamedTuple):
    """One line with the points it was fitted to, all (x, y) positive."""

    name: str
    colour: str  # CSS class
    line: Sequence[tuple[float, float]]
    points: Sequence[tuple[float, float]]


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _BOTTOM, _TOP = 340, 230, 46, 14, 34, 10


def curves(lines: Sequence[Curve], xlabel: str, ylabel: str) -> Markup:
    """Lines over points, both axes logarithmic."""
    shown = [spot for curve in lines for spot in (*curve.line, *curve.points)]
    xs, ys = ([spot[axis] for spot in shown] for axis in (0, 1))
    to_x = _scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    to_y = _scale(min(ys) * 0.8, max(ys) * 1.2, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_axes(xs, ys, to_x, to_y), *_axis_names(xlabel, ylabel)]
    for curve in lines:
        path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in curve.line)
        parts.append(tag("polyline", class_=f"line {curve.colour}", points=path))
        for x, y in curve.points:
            note = tag("title", f"{curve.name}, {x:g}: {y:.3g}")
            spot = tag("circle", class_=f"dot {curve.colour}", cx=to_x(x), cy=to_y(y), r=2.6)
            parts.append(tag("g", note, spot))
    box = f"0 0 {_WIDTH} {_HEIGHT}"
    label = f"{ylabel} by {xlabel}"
    return tag("svg", parts, class_="curves", viewBox=box, role="img", aria_label=label)


def _scale(least: float, most: float, start: float, end: float) -> Callable[[float], float]:
    low, high = math.log(least), math.log(max(most, least * 1.01))
    return lambda value: start + (math.log(value) - low) / (high - low) * (end - start)


def _axes(
    xs: Sequence[float],
    ys: Sequence[float],
    to_x: Callable[[float], float],
    to_y: Callable[[float], float],
) -> list[Markup]:
    parts = []
    for tick in ticks(min(ys), max(ys)):
        y = to_y(tick)
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=y, y2=y))
        parts.append(tag("text", f"{tick:g}", x=_LEFT - 6, y=y + 4, text_anchor="end"))
    floor = _HEIGHT - _BOTTOM
    for tick in powers_of_two(min(xs), max(xs)):
        x = to_x(tick)
        parts.append(tag("line", class_="grid", x1=x, x2=x, y1=floor, y2=floor + 4))
        parts.append(tag("text", f"{tick:g}", x=x, y=floor + 16, text_anchor="middle"))
    return parts


def _axis_names(xlabel: str, ylabel: str) -> list[Markup]:
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    turn = f"translate(11 {(_HEIGHT - _BOTTOM) / 2}) rotate(-90)"
    return [
        tag("text", xlabel, x=middle, y=_HEIGHT - 3, text_anchor="middle"),
        tag("text", ylabel, transform=turn, text_anchor="middle"),
    ]


def ticks(least: float, most: float) -> list[float]:
    """Round numbers of a logarithmic axis: decades, with others between when there are few."""
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    steps: tuple[float, ...] = (1, 2, 5) if last - first <= 3 else (1,)
    if most / least < 6:
        steps = (1, 1.5, 2, 3, 4, 6, 8)
    found = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return [value for value in found if 0.8 * least <= value <= 1.2 * most]


def powers_of_two(least: float, most: float) -> list[float]:
    """1, 2, 4, … of an axis; every second one when there are many."""
    found = [2.0**power for power in range(20) if least <= 2**power <= most]
    return found[:: 1 if len(found) <= 7 else 2]


def spots(values: Sequence[float], least: float, most: float) -> Markup:
    """Values on one logarithmic line as wide as the page allows, from `least` to `most`."""
    to_share = _scale(least, most, 1.5, 98.5)
    parts = [
        tag(
            "line",
            class_="grid",
            x1=f"{to_share(t):.4g}%",
            x2=f"{to_share(t):.4g}%",
            y1=0,
            y2="100%",
        )
        for t in ticks(least, most)
    ]
    for value in values:
        x = f"{to_share(min(max(value, least), most)):.4g}%"
        parts.append(tag("circle", class_="dot a", cx=x, cy="50%", r=5))
    label = ", ".join(f"{value:.3g}" for value in values)
    return tag("svg", parts, class_="bar", role="img", aria_label=label)


def axis(least: float, most: float) -> Markup:
    """The round numbers below a column of `spots`."""
    to_share = _scale(least, most, 1.5, 98.5)
    labels = [
        tag("text", f"{tick:g}", x=f"{to_share(tick):.4g}%", y=12, text_anchor="middle")
        for tick in ticks(least, most)
    ]
    return tag("svg", labels, class_="axis", role="img", aria_label="axis")
