"""`blockllm zoo stitch`: the lower layers of one model and the upper ones of another, as one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockllm.cli.measure import parse_share
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
from blockllm.cli.output import make_table, print_json, print_table, progress_bars, say, size_text
from blockllm.errors import ZooError

if TYPE_CHECKING:
    from blockllm.offline.stitching.cuts import Cut
    from blockllm.offline.stitching.stitch import Stitched
    from blockllm.zoo import Zoo

Front = Annotated[
    str,
    typer.Argument(metavar="A@LAYER", help="Model and how many of its layers run: base@3, @1,3,5."),
]
Back = Annotated[
    str,
    typer.Argument(metavar="B@LAYER", help="Model and how many of its layers are skipped."),
]
MaxRise = Annotated[
    str | None,
    typer.Option(help="Keep no chain whose perplexity is higher than B's by more, as 5% or 0.05."),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(dir_okay=False, help="File of checkpoints; a stopped training goes on."),
]


def stitch(
    front: Front,
    back: Back,
    folder: Folder,
    name: Annotated[str, typer.Option(help="Name of the new model in the zoo.")],
    text: Text,
    steps: Steps = 100,
    rate: Rate = 1e-4,
    rows: Rows = 4,
    window: TrainingWindow = 128,
    weight_terms: Annotated[int, typer.Option(min=1, help="Powers of the position.")] = 2,
    bias_terms: Annotated[int, typer.Option(min=1, help="Powers of the position.")] = 2,
    measured: Measured = None,
    max_rise: MaxRise = None,
    checkpoint: Checkpoint = None,
    as_json: Json = False,
) -> None:
    """Join two models by a bridge trained for it; several cuts share one bridge.

    Give equally many layers of both, or `@all` for every cut at matching depths.
    """
    from blockllm.offline.stitching.bridge import BridgePowers
    from blockllm.offline.stitching.stitch import StitchOptions
    from blockllm.offline.stitching.stitch import stitch as make
    from blockllm.offline.training.loop import TrainingSchedule
    from blockllm.zoo import Zoo

    zoo = Zoo(folder)
    (first, ours), (second, theirs) = _parse(front), _parse(back)
    options = StitchOptions(
        first, second, _cuts(zoo, first, ours, second, theirs), name, text.read_bytes(), window,
        TrainingSchedule(steps, rate, rows), BridgePowers(weight_terms, bias_terms),
        measured.read_bytes() if measured else None,
        None if max_rise is None else parse_share(max_rise), checkpoint,
    )  # fmt: skip
    with progress_bars() as progress:
        found = make(zoo, options, progress)
    if as_json:
        print_json(found)
    else:
        _print(found)
    refused = [one for one in found if not one.kept]
    for one in refused:
        say(
            f"{one.name}: the perplexity rises by {one.loss.rise:.2%}, allowed is "
            f"{options.max_rise:.2%}; not added",
            error=True,
        )
    if refused:
        raise typer.Exit(1)


def _parse(place: str) -> tuple[str, list[int] | None]:
    """`base@1,3` as name and layers; None for `base@all`."""
    model, separator, layers = place.rpartition("@")
    try:
        if not separator:
            raise ValueError
        return model, None if layers == "all" else [int(layer) for layer in layers.split(",")]
    except ValueError:
        raise ZooError(f"expected MODEL@LAYER, MODEL@1,3 or MODEL@all, got {place!r}") from None


def _cuts(
    zoo: Zoo, first: str, ours: list[int] | None, second: str, theirs: list[int] | None
) -> tuple[Cut, ...]:
    from blockllm.offline.stitching.cuts import Cut, matching_cuts

    if ours is None and theirs is None:
        return tuple(matching_cuts(zoo.layers(first), zoo.layers(second)))
    if ours is None or theirs is None or len(ours) != len(theirs):
        raise ZooError("give equally many layers of both models, or @all of both")
    return tuple(Cut(*pair) for pair in zip(ours, theirs, strict=True))


def _print(found: list[Stitched]) -> None:

    table = make_table("model", "size", "MFLOP a token", "perplexity", "KL", "same first choice")
    one = found[0]
    sides = (
        (one.front, one.front_cost, one.front_perplexity),
        (one.back, one.back_cost, one.loss.reference_perplexity),
    )
    for model, cost, perplexity in sides:
        facts = [model, size_text(cost.nbytes), f"{cost.flops / 1e6:.2f}"]
        table.add_row(*facts, f"{perplexity:.3f}", "", "")
    for one in found:
        facts = [one.name, size_text(one.cost.nbytes), f"{one.cost.flops / 1e6:.2f}"]
        facts += [f"{one.loss.perplexity:.3f}", f"{one.loss.kl:.4f}", f"{one.loss.agreement:.2%}"]
        table.add_row(*facts)
    print_table(table)
