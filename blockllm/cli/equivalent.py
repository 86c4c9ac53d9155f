"""`blockllm zoo equivalent`: layers of different models that may stand in for each other."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blockllm.cli.measure import parse_share
from blockllm.cli.options import Folder, Json
from blockllm.cli.output import make_table, print_json, print_table, progress_bars, say, size_text
from blockllm.errors import ConfigError

if TYPE_CHECKING:
    from blockllm.offline.equivalence.evidence import Budget, Edge, Findings
    from blockllm.zoo import Zoo


Models = Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models of the zoo.")]
Texts = Annotated[
    list[str],
    typer.Option(
        metavar="[MODEL=]FILE",
        help="Text (UTF-8) that models were made for: of all, or of one. Repeat it.",
    ),
]
Threshold = Annotated[
    float, typer.Option(help="Cosine of two layers below which they are not even tried.")
]
MaxKl = Annotated[
    float | None, typer.Option(min=0, help="KL (nats) allowed; 0.01 if no limit is given.")
]
MaxRise = Annotated[str | None, typer.Option(help="Rise of the perplexity allowed, as 1% or 0.01.")]
MinAgreement = Annotated[
    float | None, typer.Option(min=0, max=1, help="Share of equal first choices needed.")
]
Reach = Annotated[int, typer.Option(min=0, help="Compare layers at most this many apart.")]
Window = Annotated[int, typer.Option(min=2, help="Tokens scored at a time, each window alone.")]
Tokens = Annotated[int, typer.Option(min=2, help="Tokens used of each model's text.")]
Assemble = Annotated[
    str | None, typer.Option(metavar="NAME", help="Add the changed model to the zoo.")
]
Out = Annotated[Path | None, typer.Option(file_okay=False, help="Folder for JSON and heat maps.")]


def equivalent(
    models: Models,
    folder: Folder,
    text: Texts,
    threshold: Threshold = 0.9,
    max_kl: MaxKl = None,
    max_rise: MaxRise = None,
    min_agreement: MinAgreement = None,
    reach: Reach = 0,
    window: Window = 512,
    tokens: Tokens = 4096,
    assemble: Assemble = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Find the swaps of layers between models that save most bytes within a loss you allow."""
    from blockllm.offline.equivalence.adopt import adopt, check_free
    from blockllm.offline.equivalence.evidence import Budget
    from blockllm.offline.equivalence.find import Limits, find_equivalents, record
    from blockllm.zoo import Zoo

    zoo = Zoo(folder)
    if assemble:
        check_free(zoo, models, assemble)
    texts = _read_texts(models, text)
    rise = None if max_rise is None else parse_share(max_rise)
    if max_kl is None and rise is None and min_agreement is None:
        max_kl = 0.01
    limits = Limits(Budget(max_kl, rise, min_agreement), threshold, reach, window, tokens)
    with progress_bars() as progress:
        findings = find_equivalents(zoo, models, texts, limits, progress)
    record(zoo, findings)
    if out is not None:
        _write(out, zoo, findings)
    if not as_json:
        _print_findings(findings)
    made = adopt(zoo, models, findings.plan, assemble, texts, limits) if assemble else []
    if as_json:
        return print_json({"findings": findings, "assembled": made})
    for one in made:
        say(f"added {one.model}: perplexity {one.rise:+.2%} against {one.reference}")
    return None


def _read_texts(models: list[str], given: list[str]) -> dict[str, bytes]:
    """The text of each model: its own files, else those given for all."""
    found: dict[str, list[bytes]] = {}
    for item in given:
        model, separator, path = item.partition("=")
        owner, path = (model, path) if separator and model in models else ("", item)
        try:
            found.setdefault(owner, []).append(Path(path).read_bytes())
        except OSError as error:
            raise ConfigError(f"--text: {error}") from error
    for model in models:
        if not found.get(model, found.get("")):
            raise ConfigError(f"no text for {model!r}: --text FILE or --text {model}=FILE")
    return {model: b"\n".join(found.get(model, found.get("", []))) for model in models}


def _write(out: Path, zoo: Zoo, findings: Findings) -> None:
    """All evidence as JSON, a heat map of each pair of models as PNG and SVG."""
    import msgspec

    from blockllm.offline.equivalence.plot import heatmaps

    out.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.format(msgspec.json.encode(findings), indent=2)
    (out / "equivalence.json").write_bytes(encoded)
    models = {name: zoo.layers(name) for name in findings.models}
    for pair in combinations(models, 2):
        for ending in ("png", "svg"):
            heatmaps(out / f"{'-'.join(pair)}.{ending}", findings, models, pair)


def _print_findings(findings: Findings) -> None:

    columns = ("in place of", "stands", "cosine", "distance", "lens cosine", "lens KL")
    table = make_table(*columns, "changes", "KL", "rise", "same first choice", "")
    for edge in findings.edges:
        for row in _rows(edge, findings.budget):
            table.add_row(*row)
    print_table(table)
    for guess in findings.predictions:
        say(
            f"{guess.metric} ranks {guess.num_swaps} swaps ({guess.pairs}) like the swap test "
            f"with correlation {guess.rank_correlation:.2f}"
        )
    plan = findings.plan
    saved, total = size_text(plan.saved_bytes), size_text(plan.total_bytes)
    share = plan.saved_bytes / plan.total_bytes
    say(f"{len(plan.swaps)} swaps save {saved} of {total} ({share:.1%}):")
    say("  " + ("; ".join(map(str, plan.swaps)) or "none is within the budget"))
    for model, quality in plan.quality.items():
        alone = sum(e.quality[model].kl for e in _made_in(findings, model))
        say(
            f"{model} with all of them: perplexity {quality.perplexity:.3f} ({quality.rise:+.2%}), "
            f"KL {quality.kl:.5f} (one by one they add up to {alone:.5f}), same first choice "
            f"{quality.agreement:.2%}, {quality.num_tokens} tokens"
        )


def _made_in(findings: Findings, model: str) -> list[Edge]:
    return [e for e in findings.edges if e.swap in findings.plan.swaps and model in e.quality]


def _rows(edge: Edge, budget: Budget) -> list[list[str]]:
    """One line for each model that the swap changes; one with the reason if it was not run."""
    swap, weights, lens = edge.swap, edge.weights, edge.lens
    facts = [str(swap.old_site), str(swap.new_site)]
    facts += [f"{weights.cosine:.4f}", f"{weights.distance:.4f}"] if weights else ["", ""]
    facts += [f"{lens.cosine:.4f}", f"{lens.kl:.5f}"] if lens else ["", ""]
    if not edge.quality:
        return [[*facts, "", "", "", "", "not tried"]]
    rows = []
    for model, found in edge.quality.items():
        losses = [f"{found.kl:.5f}", f"{found.rise:+.2%}", f"{found.agreement:.2%}"]
        verdict = "allowed" if budget.allows({model: found}) else "refused"
        rows.append([*facts, model, *losses, verdict])
        facts = [""] * len(facts)
    return rows
