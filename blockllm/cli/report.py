"""`blockllm zoo report`: one static page of what a zoo shares, loses and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blockllm.cli.options import Folder
from blockllm.cli.output import say
from blockllm.errors import ZooError


def report(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="File to write, as zoo.html.")],
    folder: Folder,
) -> None:
    """Write one HTML page with plots of sharing, losses and costs; it needs no network."""
    from blockllm.offline.report.facts import collect
    from blockllm.offline.report.page import headline, render
    from blockllm.zoo import Zoo

    facts = collect(Zoo(folder))
    file = out / "index.html" if out.is_dir() else out
    try:
        file.write_text(render(facts), encoding="utf-8")
    except OSError as error:
        raise ZooError(f"{file}: {error}") from error
    say(f"{headline(facts)}: {file}")
