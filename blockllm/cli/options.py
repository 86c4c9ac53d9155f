"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from blockllm.config import default_zoo

Folder = Annotated[
    str,
    typer.Option(
        "--zoo", envvar="BLOCKLLM_ZOO", help="Folder of the zoo.", default_factory=default_zoo
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the model in the zoo.")]
