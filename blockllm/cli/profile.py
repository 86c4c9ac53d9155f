"""`blockllm zoo profile`: what a hop through each span costs on this device, kept in the zoo."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blockllm.cli.options import Folder, Json
from blockllm.cli.output import print_json, print_table, say
from blockllm.config import EngineSettings, load

if TYPE_CHECKING:
    from rich.table import Table

    from blockllm.offline.profile import ProfiledSpan

_NUMBERS = (
    "MB", "1 row", "8 rows", "32 rows", "128 rows", "error", "p95", "disk", "cached", "ready"
)  # fmt: skip
_CONTEXT = 128  # tokens per sequence of the times shown


def profile(
    folder: Folder,
    models: Annotated[str, typer.Option(help="Names, comma separated; all if none.")] = "",
    again: Annotated[bool, typer.Option("--again", help="Measure also what is known.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Times that each size is measured.")] = 5,
    sequences: Annotated[int, typer.Option(min=1, help="Most sequences in a hop.")] = 32,
    context: Annotated[int, typer.Option(min=16, help="Longest context, in tokens.")] = 512,
    rows: Annotated[int, typer.Option(min=8, help="Most rows of a chunk of a prompt.")] = 256,
    memory: Annotated[str | None, typer.Option(help="Weights and KV together, as 8GiB.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, float16; auto: by device.")
    ] = "auto",
    threads: Annotated[int, typer.Option(help="Compute threads; 0: all cores.")] = 0,
    as_json: Json = False,
) -> None:
    """Measure and fit time by rows and KV tokens for every span; load times by tier."""
    from blockllm.offline.profile import Effort
    from blockllm.offline.profile import profile as measure
    from blockllm.zoo import Zoo

    flags: dict[str, Any] = {"memory": memory, "device": device, "dtype": dtype}
    flags |= {"threads": threads or None, "max_sequences": sequences}
    flags |= {"max_rows": max(sequences, rows)}
    chosen = [name for name in models.split(",") if name] or None
    settings = load(EngineSettings, "engine", None, flags)
    effort = Effort(rounds, sequences, context, rows)
    found = measure(Zoo(folder), chosen, settings, effort, again, _show_progress)
    if as_json:
        return print_json(found)
    _print(found)


def _show_progress(activity: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{activity}: {done} of {total}  ", end="", file=sys.stderr, flush=True)


def _print(found: list[ProfiledSpan]) -> None:
    device = found[0].profile.device
    versions = ", ".join(f"{name} {number}" for name, number in device.versions.items())
    say(f"{device.name}, {device.threads} threads, {device.dtype}; {versions}")
    measured = len({one.profile.shape for one in found if not one.known})
    shapes = len({one.profile.shape for one in found})
    say(f"{len(found)} spans of {shapes} shapes: {measured} measured, {shapes - measured} known")
    print_table(_table(found))
    say(
        f"times in ms; rows: sequences that decode with {_CONTEXT} tokens each; error, p95: of the "
        "fit on hops it has not seen; disk, cached, ready: load times by tier"
    )


def _table(found: list[ProfiledSpan]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("span", "layers", "format", "models"):
        table.add_column(column)
    for column in _NUMBERS:
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        profile, error, load = one.profile, one.profile.error, one.profile.load
        times = [profile.cost.estimate(rows, rows * _CONTEXT) for rows in (1, 8, 32, 128)]
        loads = (load.disk, load.page_cache, load.ready)
        milliseconds = ["?" if t is None else f"{t * 1e3:.3f}" for t in (*times, *loads)]
        errors = [f"{error.median:.1%}", f"{error.p95:.1%}"]
        models = ", ".join(one.models)
        facts = [one.span, profile.layers, profile.format, models, f"{profile.nbytes / 1e6:.2f}"]
        table.add_row(*facts, *milliseconds[:4], *errors, *milliseconds[4:])
    return table
