"""The `blockllm` command: joins the commands, imports none of their dependencies."""

from __future__ import annotations

import sys

import typer

from blockllm.cli import bench, chat, serve, zoo
from blockllm.errors import BlockllmError

app = typer.Typer(
    name="blockllm",
    help="Serve many fine-tuned language models from one pool of shared blocks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(zoo.app, name="zoo")
app.add_typer(bench.app, name="bench")
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)


def main() -> None:
    """Run the command; errors raised on purpose become one line and exit status 1."""
    try:
        app()
    except BlockllmError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from error
