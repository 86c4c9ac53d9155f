"""Sections of the page about bytes: what models share and what they take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blockllm.offline.report.facts import TIERS, Facts, LayerFacts, ModelFacts
from blockllm.offline.report.markup import Child, Markup, tag
from blockllm.offline.report.plots import Part, bar, heatmap, strip
from blockllm.offline.report.units import counted, size_text

Row = tuple[Child, ...]


def section(title: str, caption: Child, *content: Child) -> Markup:
    """A card of the page."""
    return tag("section", tag("h2", title), tag("p", caption), *content)


def table(columns: Sequence[str], rows: Iterable[Row], title: str = "The numbers") -> Markup:
    """Numbers behind a plot, folded away."""
    head = tag("tr", [tag("th", column, scope="col") for column in columns])
    body = [tag("tr", [tag("td", cell) for cell in row]) for row in rows]
    whole = tag("table", tag("thead", head), tag("tbody", body))
    return tag("details", tag("summary", title), tag("div", whole, class_="scroll"))


def key(entries: Iterable[tuple[str, str]]) -> Markup:
    """What the colours mean: CSS class and words."""
    return tag(
        "div", [tag("span", tag("i", class_=c), words) for c, words in entries], class_="key"
    )


def bars(rows: Iterable[tuple[Child, Markup, Child]]) -> Markup:
    """Rows of name, bar and value."""
    cells = [
        (tag("div", name, class_="name"), plot, tag("div", value, class_="value"))
        for name, plot, value in rows
    ]
    return tag("div", cells, class_="rows")


def totals(facts: Facts) -> Markup:
    """The three ways to keep the same models."""
    ways = (
        ("a copy for every model", facts.separate, "pale"),
        ("a file for every checkpoint and adapter", facts.files, "pale"),
        ("this zoo", facts.stored, "shared"),
    )
    most = max(facts.separate, 1)
    rows = [
        (name, bar([Part(name, size, colour)], most, size_text), size_text(size))
        for name, size, colour in ways
    ]
    return section(
        "Bytes of weights",
        "The same models kept in three ways. In the second, adapters share their base but "
        "checkpoints share nothing: what a folder of downloads takes.",
        bars(rows),
    )


def layer_map(facts: Facts) -> Markup:
    """Every model as a row of layers, coloured by who has the same one."""
    rows = [
        (
            model.card.name,
            strip([_cell(i, layer) for i, layer in enumerate(model.layers)]),
            tag("span", f"{len(model.layers)} layers"),
        )
        for model in facts.models
    ]
    colours = (
        ("own", "this model's alone"), ("pale", "shared by two"),
        ("shared", "shared by three or more"), ("delta", "the model adds a delta here"),
    )  # fmt: skip
    numbers = [
        (
            model.card.name,
            str(sum(not layer.shared_with for layer in model.layers)),
            str(sum(bool(layer.shared_with) for layer in model.layers)),
            str(sum(layer.has_delta for layer in model.layers)),
            ", ".join(dict.fromkeys(n for layer in model.layers for n in layer.shared_with)),
        )
        for model in facts.models
    ]
    return section(
        "Who shares what",
        "A row is a model, a cell one of its layers: embedding at the left, head at the right. "
        "Layers of one colour and place need not be the same; hover over a cell for names.",
        key(colours),
        bars(rows),
        table(("model", "own layers", "shared layers", "with a delta", "shared with"), numbers),
    )


def _cell(position: int, layer: LayerFacts) -> tuple[str, str, bool]:
    count = len(layer.shared_with)
    colour = "own" if not count else "pale" if count == 1 else "shared"
    with_whom = f"shared with {', '.join(layer.shared_with)}" if count else "not shared"
    delta = ", a delta here" if layer.has_delta else ""
    note = f"layer {position} ({layer.kind}, {size_text(layer.nbytes)}): {with_whom}{delta}"
    return colour, note, layer.has_delta


def models(facts: Facts) -> Markup:
    """Each model's bytes: shared with others, its own."""
    most = max((model.card.total_bytes for model in facts.models), default=1)
    rows = []
    for model in facts.models:
        card = model.card
        parts = [
            Part("shared with other models", card.shared_bytes, "shared"),
            Part("its own", card.own_bytes, "own"),
        ]
        name = [card.name, tag("small", _description(model))]
        rows.append((name, bar(parts, most, size_text), _own_of(model)))
    numbers = [
        (
            *(m.card.name, m.card.kind, m.card.format, m.card.parent or "", m.tier),
            *(size_text(n) for n in (m.card.total_bytes, m.card.shared_bytes, m.card.own_bytes)),
            tag("code", m.card.root),
        )
        for m in facts.models
    ]
    columns = ("model", "kind", "format", "base", "tier", "bytes", "shared", "own", "added from")
    return section(
        "What each model takes",
        "Bytes that a model needs, and how much of them it shares exactly with at least one other "
        "model. Its own bytes are what removing it would free.",
        key((("shared", "shared"), ("own", "its own"))),
        bars(rows),
        table(columns, numbers),
    )


def _description(model: ModelFacts) -> str:
    base = f" on {model.card.parent}" if model.card.parent else ""
    lossy = "" if model.card.exact else ", lossy"
    return f"{model.card.kind}{base}, {model.card.format}{lossy}"


def _own_of(model: ModelFacts) -> Markup:
    own, total = model.card.own_bytes, model.card.total_bytes
    return tag("span", size_text(own), tag("small", f"of {size_text(total)}"))


def sharing(facts: Facts) -> Markup:
    """Bytes that each pair of models has in common."""
    names = [model.card.name for model in facts.models]
    columns = ("model", *names)
    rows = [
        (name, *(size_text(n) for n in line))
        for name, line in zip(names, facts.shared, strict=True)
    ]
    plot = heatmap(names, names, facts.shared, size_text)
    most = size_text(max(map(max, facts.shared)))
    return section(
        "Shared exactly, pair by pair",
        "Bytes of tensors that both models have, by content hash; on the diagonal all that a model "
        f"needs. Colours go from nothing to {most}.",
        tag("div", plot, class_="scroll"),
        table(columns, rows),
    )


def tiers(facts: Facts) -> Markup:
    """Stored bytes against separate copies, tier by tier."""
    most = max((tier.separate for tier in facts.tiers), default=1)
    rows: list[tuple[Child, Markup, Child]] = []
    for tier in facts.tiers:
        name = [tier.tier, tag("small", f"{counted(len(tier.models), 'model')}")]
        separate = bar([Part("separate copies", tier.separate, "pale")], most, size_text)
        rows.append((name, separate, size_text(tier.separate)))
        stored = bar([Part("in this zoo", tier.stored, "shared")], most, size_text)
        rows.append((tag("small", TIERS[tier.tier]), stored, size_text(tier.stored)))
    numbers = [
        (t.tier, ", ".join(t.models), *map(size_text, (t.separate, t.stored))) for t in facts.tiers
    ]
    return section(
        "Bytes by tier of sharing",
        "Tiers in order: what a tier stores is what its models need beyond the tiers above it. "
        "Tiers below delta lose something; the next plot says how much.",
        key((("pale", "separate copies"), ("shared", "in this zoo"))),
        bars(rows),
        table(("tier", "models", "separate", "stored"), numbers),
    )
