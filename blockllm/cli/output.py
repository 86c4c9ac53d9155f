"""What commands print: JSON, tables, sizes, progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from blockllm.offline.report.units import size_text

__all__ = ["make_table", "print_json", "print_table", "progress_bars", "size_text"]

if TYPE_CHECKING:
    from rich.table import Table

    from blockllm.zoo import Progress


def print_json(value: Any) -> None:
    """A value as indented JSON."""
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def make_table(*columns: str) -> Table:
    """An empty table; columns of numbers are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    numbers = {"context", "layers", "size", "own", "shared"}
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in numbers else "left")
    return table


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, whole where there is none."""
    from rich.console import Console

    # into a file or pipe nothing is cut off
    Console(width=None if sys.stdout.isatty() else 200).print(table)


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

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Bars(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task("", total=None)

        def show(activity: str, done: int, total: int) -> None:
            bars.update(task, description=activity, completed=done, total=total or None)

        yield show
