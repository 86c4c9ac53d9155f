"""`blockllm zoo add`: one model, or all models of a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from blockllm.cli.compress import DeltaText, Limits, MaxBytes, MaxKl, Share, add_delta, delta_lines
from blockllm.cli.options import Folder, Json
from blockllm.cli.output import print_json, progress_bars, say, size_text
from blockllm.errors import ZooError

if TYPE_CHECKING:
    from blockllm.zoo.many import Outcome
    from blockllm.zoo.reports import AddReport


def add(
    folder: Folder,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name that the model gets in the zoo.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH_OR_HUB_ID",
            help="Folder of a Hugging Face checkpoint or an adapter, or a hub id as org/model.",
        ),
    ] = None,
    all_of: Annotated[
        str | None,
        typer.Option(
            "--all",
            metavar="FOLDER",
            help="Add the model or adapter in each subfolder, named as it is.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Name of the base in the zoo; else an adapter's config says."),
    ] = None,
    format: Annotated[
        Literal["int8"] | None,
        typer.Option(help="Round the linears and the head of a checkpoint; else they stay."),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Multiplies the scale of a LoRA or bottleneck adapter."),
    ] = None,
    share: Share = None,
    max_kl: MaxKl = None,
    max_bytes: MaxBytes = None,
    text: DeltaText = None,
    as_json: Json = False,
) -> None:
    """Add a model, or all of a folder. Only weights that the zoo does not have yet are written."""
    limits = Limits(max_kl, max_bytes, text)
    if all_of is not None:
        given = (name, source, scale, share, *limits)
        if any(value is not None for value in given):
            raise ZooError("--all takes --base, --format, --zoo and --json, and nothing else")
        return _add_all(all_of, folder, base, format, as_json)
    if name is None or source is None:
        raise typer.BadParameter("give a name and a path or hub id, or --all FOLDER")
    limits.check(share, base, others=format is not None or scale is not None)
    if share is not None and base is not None:
        return _add_delta(name, source, folder, base, limits, as_json)
    from blockllm.api.probe import probe_texts
    from blockllm.zoo import Zoo

    with progress_bars() as progress:
        report = Zoo(folder, probe_texts).add(name, source, base, progress, format, scale)
    if as_json:
        return print_json(report)
    say(_report_text(report), keep="\n")
    return None


def _report_text(report: AddReport) -> str:
    total, stored = size_text(report.total_bytes), size_text(report.stored_bytes)
    blocks = f"{report.num_shared_blocks} of {report.num_blocks} blocks shared"
    line = f"added {report.name}: {total}, stored {stored}, {blocks}, {report.seconds:.1f} s"
    return "\n  ".join((line, *report.notes))


def _add_all(
    source: str, folder: str, base: str | None, format: Literal["int8"] | None, as_json: bool
) -> None:
    """One line for each model; exit status 1 if one was refused."""
    from blockllm.api.probe import probe_texts
    from blockllm.zoo import Zoo
    from blockllm.zoo.many import add_all

    with progress_bars() as progress:
        found = []
        for outcome in add_all(Zoo(folder, probe_texts), source, base, format, progress):
            found.append(outcome)
            if not as_json:
                say(_outcome_text(outcome), keep="\n")
    if as_json:
        print_json(found)
    else:
        say(_summary(found))
    if any(outcome.refused is not None for outcome in found):
        raise typer.Exit(1)


def _outcome_text(outcome: Outcome) -> str:
    if outcome.refused is not None:
        return f"refused {outcome.name}: {outcome.refused}"
    if outcome.report is None:
        return f"kept {outcome.name}: added from this folder before"
    return _report_text(outcome.report)


def _summary(found: list[Outcome]) -> str:
    refused = sum(outcome.refused is not None for outcome in found)
    added = [outcome.report for outcome in found if outcome.report is not None]
    stored = size_text(sum(report.stored_bytes for report in added))
    kept = len(found) - refused - len(added)
    return f"added {len(added)}, kept {kept}, refused {refused}; stored {stored}"


def _add_delta(
    name: str, source: str, folder: str, base: str, limits: Limits, as_json: bool
) -> None:
    from blockllm.zoo import Zoo

    beside = Path(folder).expanduser().absolute().parent
    with progress_bars() as progress:
        made = add_delta(Zoo(folder), name, source, base, limits, beside, progress)
    if as_json:
        return print_json(made)
    say("\n".join(delta_lines(name, made)), keep="\n")
    return None
