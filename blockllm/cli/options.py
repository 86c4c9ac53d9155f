"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
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

# of commands that train
Text = Annotated[
    Path, typer.Option(exists=True, dir_okay=False, help="Text (UTF-8) to learn from.")
]
Measured = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="Text to measure on; else a fifth of --text."),
]
Steps = Annotated[int, typer.Option(min=0, help="Steps of distillation.")]
Rate = Annotated[float, typer.Option(help="Learning rate.")]
Rows = Annotated[int, typer.Option(min=1, help="Windows in a step.")]
TrainingWindow = Annotated[int, typer.Option(min=2, help="Tokens in a window.")]
