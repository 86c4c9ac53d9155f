"""What commands print: JSON, tables, sizes, progress."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from blockllm.observability.plain import plain, plain_json
from blockllm.offline.report.units import size_text

__all__ = ["make_table", "print_json", "print_table", "progress_bars", "say", "size_text"]

if TYPE_CHECKING:
    from rich.table import Table

    from blockllm.zoo import Progress


def print_json(value: Any) -> None:
    """A value as indented JSON."""
    import msgspec

    print(plain_json(msgspec.json.format(msgspec.json.encode(value), indent=2).decode()))


def say(*parts: object, end: str = "\n", error: bool = False, keep: str = "") -> None:
    """Print, with every character spelt that would steer the terminal; also to standard error."""
    stream = sys.stderr if error else sys.stdout
    print(plain(" ".join(map(str, parts)), keep), end=end, file=stream, flush=True)


_NUMBERS = {"context", "layers", "size", "own", "shared"}
_LISTS = {"shared with", "delta", "changes"}  # cells that may go over several lines
_PIPE_WIDTH = 200  # of lists, where there is no terminal


def make_table(*columns: str) -> Table:
    """An empty table; columns of numbers are aligned to the right, only lists may be wrapped."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        justify: Literal["right", "left"] = "right" if column in _NUMBERS else "left"
        table.add_column(column, justify=justify, no_wrap=column not in _LISTS, overflow="fold")
    return table


def print_table(table: Table, least_wanted: Sequence[str] = ()) -> None:
    """Print a table of which nothing is cut off. On a terminal that is too narrow the least wanted
    columns are left out, in this order, and named; what is still too wide runs over the edge."""
    from rich.console import Console

    width = terminal_width()
    table = _without(table, "")  # the same, spelt
    left_out = []
    for column in least_wanted:
        if width is None or _least_width(table) <= width:
            break
        table = _without(table, column)
        left_out.append(column)
    wide = max(width or _PIPE_WIDTH, _least_width(table))
    Console(width=wide, markup=False, emoji=False).print(table)
    if left_out:
        say(f"not shown on {width} columns: {', '.join(left_out)} (--json has them)")


def _without(table: Table, header: str) -> Table:
    kept = [column for column in table.columns if column.header != header]
    smaller = make_table(*(str(column.header) for column in kept))
    for row in zip(*(column.cells for column in kept), strict=True):
        smaller.add_row(*map(plain, row))
    return smaller


def terminal_width() -> int | None:
    """Characters in a line of the terminal that is printed to; None: a file or pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _least_width(table: Table) -> int:
    """Characters of a line in which no cell is cut: lists are as wide as their longest word."""
    from rich.cells import cell_len

    widths = []
    for column in table.columns:
        texts = [str(column.header), *map(str, column.cells)]
        pieces = texts if column.no_wrap else " ".join(texts).split()
        widths.append(max(map(cell_len, pieces), default=0))
    return sum(widths) + 3 * len(widths) - 1  # three spaces between columns, one at each edge


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    from blockllm.zoo.reports import silent

    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Bars(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task("", total=None)

        def show(activity: str, done: int, total: int) -> None:
            bars.update(task, description=plain(activity), completed=done, total=total or None)

        yield show
