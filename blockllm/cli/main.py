"""The `blockllm` command: joins the commands, imports none of their dependencies."""

from __future__ import annotations

from typing import Annotated

import typer

from blockllm import __version__
from blockllm.cli import bench, chat, serve, zoo
from blockllm.cli.output import say
from blockllm.config import unknown_variables
from blockllm.errors import BlockllmError

app = typer.Typer(
    name="blockllm",
    help="Serve many fine-tuned language models from one pool of shared blocks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        say(f"blockllm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version)
    ] = False,
) -> None:
    """Options of every command."""


app.add_typer(zoo.app, name="zoo")
app.add_typer(bench.app, name="bench")
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)


def main() -> None:
    """Run the command; errors raised on purpose become one line and exit status 1."""
    for name, hint in unknown_variables().items():
        say(f"warning: {name} is not a setting{hint}", error=True)
    try:
        app()
    except BlockllmError as error:
        say(f"error: {error}", error=True)
        raise SystemExit(1) from error
