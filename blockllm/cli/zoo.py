"""`blockllm zoo`: add, list, inspect, remove and check the models of a zoo."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from blockllm.cli import profile as profiling
from blockllm.cli import report as reporting
from blockllm.cli.add import add
from blockllm.cli.equivalent import equivalent
from blockllm.cli.measure import (
    Against,
    MaxRise,
    Text,
    Window,
    loss_lines,
    parse_share,
    take_measurement,
)
from blockllm.cli.options import Folder, Json, Name
from blockllm.cli.output import make_table, print_json, print_table, progress_bars, say, size_text
from blockllm.cli.stitch import stitch
from blockllm.cli.surrogate import surrogate

if TYPE_CHECKING:
    from blockllm.core import ChainEntry, Layer, ModelCard
    from blockllm.zoo import Zoo

app = typer.Typer(
    name="zoo",
    help="The store of models: each block of weights is kept once for all models.",
    no_args_is_help=True,
)

_LISTED = (
    "model", "kind", "family", "format", "base", "context", "blocks", "size", "own", "shared"
)  # fmt: skip
_LEAST_WANTED = ("context", "family", "blocks", "format", "kind", "base")


app.command()(add)


@app.command()
def ls(folder: Folder, as_json: Json = False) -> None:
    """List the models, oldest first, with the bytes each shares and owns."""
    zoo = _open(folder)
    cards = zoo.cards()
    if as_json:
        print_json(cards)
        return _fail_for(cards)
    if not cards:
        say(f"no models in {folder}; add one with: blockllm zoo add NAME PATH_OR_HUB_ID")
        return None
    table = make_table(*_LISTED)
    for card in (card for card in cards if not card.damaged):
        blocks = f"{card.num_blocks} ({card.num_shared_blocks} shared)"
        sizes = [size_text(n) for n in (card.total_bytes, card.own_bytes, card.shared_bytes)]
        facts = [card.name, card.kind, card.family, card.format, card.parent or ""]
        table.add_row(*facts, str(card.max_context), blocks, *sizes)
    print_table(table, _LEAST_WANTED)
    say(_totals_line(zoo, cards))
    return _fail_for(cards)


def _fail_for(cards: Sequence[ModelCard]) -> None:
    """Exit status 1 if there are damaged models; standard error names them."""
    damaged = [card for card in cards if card.damaged]
    for card in damaged:
        say(f"error: {card.damaged}", error=True)
    if damaged:
        raise typer.Exit(1)


def _totals_line(zoo: Zoo, cards: Sequence[ModelCard]) -> str:
    models = "1 model" if len(cards) == 1 else f"{len(cards)} models"
    whole = sum(card.total_bytes for card in cards)
    saved = size_text(whole - zoo.weight_bytes())
    disk = size_text(zoo.disk_bytes())
    return f"{models}, {size_text(whole)}; sharing saves {saved}, {disk} are on disk"


@app.command()
def show(name: Name, folder: Folder, as_json: Json = False) -> None:
    """Show a model's chain: its blocks, who shares them, and what it adds to each."""
    zoo = _open(folder)
    chains = zoo.chains()
    if name not in chains:
        zoo.chain(name)  # which raises the reason
    card = zoo.card(name)
    riders: dict[str, list[str]] = {}
    for other, chain in chains.items():
        for block in dict.fromkeys(entry.block.id for entry in chain.entries):
            riders.setdefault(block, []).append(other)
    rows = []
    for entry in chains[name].entries:
        others = [other for other in riders[entry.block.id] if other != name]
        rows.append({**_describe(entry), "shared_with": others})
    defaults, ends = _defaults(zoo, name), chains[name].eos_ids
    if as_json:
        return print_json({"model": card, "ends": ends, "sampling": defaults, "chain": rows})
    base = f" on {card.parent}" if card.parent else ""
    precision = card.format if card.exact else f"{card.format} (lossy, made from {card.dtype})"
    say(f"{name}: {card.kind}{base}, {card.family}, {precision}, {card.max_context} tokens")
    say(f"{size_text(card.total_bytes)}, {size_text(card.own_bytes)} its own; from {card.root}")
    own = ", ".join(f"{field} {value:g}" for field, value in defaults.items())
    say(f"ends at {', '.join(map(str, ends)) or 'no token'}; its own defaults: {own or 'none'}")
    for line in loss_lines(card.loss) or ["loss not measured: zoo measure"] * (not card.exact):
        say(line)
    table = make_table("block", "function", "layers", "size", "shared with", "delta")
    for row in rows:
        facts = [
            row["block"][:12],
            row["function"],
            str(row["num_layers"]),
            size_text(row["bytes"]),
        ]
        delta = (
            f"{size_text(row['delta_bytes'])}: {', '.join(row['targets'])}" if row["delta"] else ""
        )
        table.add_row(*facts, ", ".join(row["shared_with"]), delta)
    print_table(table)
    return None


@app.command()
def measure(
    name: Name,
    folder: Folder,
    against: Against,
    text: Text,
    window: Window = 512,
    max_rise: MaxRise = None,
    as_json: Json = False,
) -> None:
    """Measure what a model loses against another on a text, and keep it in the catalogue."""
    limit = None if max_rise is None else parse_share(max_rise)
    found = take_measurement(_open(folder), name, against, text.read_bytes(), window)
    passed = limit is None or found.rise <= limit
    if as_json:
        print_json({"measurement": found, "rise": found.rise, "passed": passed})
    else:
        table = make_table("model", "perplexity", "rise", "KL", "same first choice", "tokens")
        table.add_row(against, f"{found.reference_perplexity:.3f}", "", "", "", "")
        facts = [f"{found.rise:+.2%}", f"{found.kl:.5f}", f"{found.agreement:.2%}"]
        table.add_row(name, f"{found.perplexity:.3f}", *facts, str(found.num_tokens))
        print_table(table)
    if not passed:
        say(f"the perplexity rises by {found.rise:.2%}, allowed is {limit:.2%}", error=True)
        raise typer.Exit(1)


@app.command()
def rm(name: Name, folder: Folder, as_json: Json = False) -> None:
    """Remove a model. Its weights stay on disk until `gc`."""
    _open(folder).remove(name)
    if as_json:
        return print_json({"removed": name})
    say(f"removed {name}; `blockllm zoo gc` frees the disk space")
    return None


@app.command()
def verify(folder: Folder, as_json: Json = False) -> None:
    """Check every stored byte against the hash it is named by. Exit status 1 if any differs."""
    from blockllm.api.probe import probe_texts
    from blockllm.zoo import Zoo

    with progress_bars() as progress:
        report = Zoo(folder, probe_texts).verify(progress)
    if as_json:
        print_json(report)
    else:
        for problem in report.problems:
            models = ", ".join(problem.models) or "no model"
            say(f"{problem.where}: {problem.what} (needed by {models})")
        state = "sound" if report.is_sound else f"{len(report.problems)} problems"
        counts = f"{report.num_packs} packs, {report.num_tensors} tensors"
        say(f"{counts}, {size_text(report.num_bytes)}: {state}")
    if not report.is_sound:
        raise typer.Exit(1)


@app.command()
def gc(folder: Folder, as_json: Json = False) -> None:
    """Delete what no model needs: weights of removed models, leavings of killed adds."""
    report = _open(folder).gc()
    if as_json:
        return print_json(report)
    say(f"removed {report.num_files} files, {size_text(report.num_bytes)}")
    return None


app.command()(profiling.profile)
app.command()(reporting.report)
app.command()(equivalent)


app.command()(stitch)
app.command()(surrogate)


def _open(folder: str) -> Zoo:
    from blockllm.zoo import Zoo

    return Zoo(folder)


def _defaults(zoo: Zoo, name: str) -> dict[str, float | int]:
    """The sampling fields that the model's files give requests which leave them out."""
    from blockllm.zoo.text.files import GENERATION
    from blockllm.zoo.text.generation import read_generation

    path = zoo.asset(name, GENERATION)
    return dict(read_generation({GENERATION: path} if path else {}).sampling)


def _kind(layer: Layer) -> str:
    part = getattr(layer.function, "part", "whole")
    return str(layer.function.__struct_config__.tag if part == "whole" else part)


def _describe(entry: ChainEntry) -> dict[str, Any]:
    block, delta = entry.block, entry.delta
    targets = delta.targets if delta else {}
    parts = delta.tensors() if delta else []
    return {
        "block": block.id,
        "function": " + ".join(dict.fromkeys(map(_kind, block.layers))),
        "num_layers": len(block.layers),
        "bytes": block.nbytes,
        "delta": delta.id if delta else None,
        "delta_bytes": sum(part.nbytes for part in parts),
        "targets": sorted({key.partition(".")[2] for key in targets}),
    }
