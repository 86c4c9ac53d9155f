"""`blockllm zoo surrogate`: cheap stand-ins of a model's layers, and a draft chain of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockllm.cli.options import (
    Folder,
    Json,
    Measured,
    Rate,
    Rows,
    Steps,
    Text,
    TrainingWindow,
)
from blockllm.cli.output import make_table, print_json, print_table, progress_bars, say

if TYPE_CHECKING:
    from blockllm.offline.surrogates.surrogate import SurrogateDraft

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Name of the model in the zoo.")]
Ratio = Annotated[
    list[float],
    typer.Option(
        min=0.01, max=0.95, help="Share of heads and MLP channels to leave out. Repeat it."
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Name of the draft; MODEL-draft if not given."),
]
MinAgreement = Annotated[
    float, typer.Option(min=0, max=1, help="Keep no draft with fewer equal first choices.")
]
Checkpoints = Annotated[
    Path | None,
    typer.Option(file_okay=False, help="Folder of checkpoints; a stopped training goes on."),
]


def surrogate(
    model: Model,
    folder: Folder,
    ratio: Ratio,
    text: Text,
    draft: Draft = None,
    steps: Steps = 100,
    rate: Rate = 1e-3,
    rows: Rows = 4,
    window: TrainingWindow = 128,
    gamma: Annotated[int, typer.Option(min=1, help="Tokens drafted at a time.")] = 4,
    measured: Measured = None,
    min_agreement: MinAgreement = 0.0,
    checkpoints: Checkpoints = None,
    as_json: Json = False,
) -> None:
    """Prune a model's layers at several ratios, distil them, and measure them as its draft."""
    from blockllm.offline.surrogates.surrogate import SurrogateOptions
    from blockllm.offline.surrogates.surrogate import surrogate as make
    from blockllm.offline.training.loop import TrainingSchedule
    from blockllm.zoo import Zoo

    zoo, schedule = Zoo(folder), TrainingSchedule(steps, rate, rows)
    base = draft or f"{model}-draft"
    made = []
    for share in ratio:
        name = base if len(ratio) == 1 else f"{base}-{share * 100:g}"
        if checkpoints is not None:
            checkpoints.mkdir(parents=True, exist_ok=True)
        options = SurrogateOptions(
            model, name, share, text.read_bytes(), window, schedule, gamma,
            measured.read_bytes() if measured else None, min_agreement,
            checkpoints and checkpoints / f"{name}.safetensors",
        )  # fmt: skip
        with progress_bars() as progress:
            made.append(make(zoo, options, progress))
    if as_json:
        print_json(made)
    else:
        _print(made)


def _print(made: list[SurrogateDraft]) -> None:

    columns = ("draft", "layer", "heads", "channels", "saved", "cosine", "of change", "same choice")
    table = make_table(*columns, "KL", "time, 1 row", "32 rows")
    for one in made:
        for index, each in enumerate(one.surrogates, start=1):
            quality = each.quality
            facts = [one.name, str(index), str(each.num_heads), str(each.intermediate_size)]
            facts += [f"{each.parameters_saved:.0%}", f"{quality.cosine:.4f}"]
            facts += [f"{quality.cosine_of_change:.4f}", f"{quality.agreement:.2%}"]
            saved = (each.row_seconds_saved, each.rows_seconds_saved)
            table.add_row(*facts, f"{quality.kl:.4f}", *(f"{-share:+.0%}" for share in saved))
    print_table(table)
    for one in made:
        found = one.speculation
        say(
            f"{one.name}: perplexity {one.loss.perplexity:.2f} (model "
            f"{one.loss.reference_perplexity:.2f}), same first choice {one.loss.agreement:.2%}; "
            f"of {found.gamma} drafted tokens {found.acceptance:.1%} accepted, "
            f"{found.tokens_per_verification:.2f} tokens per verification, "
            f"{found.speedup():.2f} times the model's own speed, faster from "
            f"{found.delay_to_pay() * 1e3:.1f} ms of waiting per pass of the model"
        )
