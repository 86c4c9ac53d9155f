"""The section about who shares what, group by group: layers, bytes and pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blockllm.offline.report.facts import Facts
from blockllm.offline.report.groups import Group, ModelGroup
from blockllm.offline.report.markup import Child, Markup, join, tag
from blockllm.offline.report.models import LayerFacts, ModelFacts
from blockllm.offline.report.plots import BarPiece, bar, heatmap, heatmap_width, strip
from blockllm.offline.report.sections import (
    bars,
    folded,
    key,
    named,
    section,
    sideways,
    table,
)
from blockllm.offline.report.units import counted, size_text

_OPEN = 1  # groups that are seen without a click
_GROUPS = 12  # groups that are listed without one
_ROWS = 8  # models of a group that are seen without one
_PAIRS = 12  # sets of alike models in a plot of pairs: as many as their numbers fit into


def sharing(facts: Facts) -> Markup:
    """All groups; models that share nothing are one list."""
    groups = [group for group in facts.groups if len(group.models) > 1]
    alone = [group.models[0] for group in facts.groups if len(group.models) == 1]
    colours = (
        ("own", "this model's alone"), ("pale", "shared by two"),
        ("shared", "shared by three or more"), ("delta", "the model adds a delta here"),
    )  # fmt: skip
    parts: list[Markup] = []
    if groups:
        parts.append(key(colours))
        parts += [_folding(group, is_open=i < _OPEN) for i, group in enumerate(groups[:_GROUPS])]
    if groups[_GROUPS:]:
        rest = [_folding(group, is_open=False) for group in groups[_GROUPS:]]
        parts.append(tag("details", tag("summary", counted(len(rest), "more group")), rest))
    if alone:
        title = f"{counted(len(alone), 'model')} that no other shares a layer with"
        parts.append(tag("h3", title))
        parts.append(_takes(sorted(alone, key=lambda model: -model.card.total_bytes)))
    return section(
        "Who shares what",
        "Groups of models that share layers, or are adapters of one base. A group is named by the "
        "model that most others are based on. Bases come first, then the models with most bytes "
        "of their own. In the first plot of a group a row is a model and a cell one of its layers, "
        "embedding at the left, head at the right; models with the same layers, and deltas at the "
        "same of them, are one row, and rows of many models come first.",
        *parts,
    )


def _folding(group: Group, is_open: bool) -> Markup:
    size = f"{counted(len(group.models), 'model')} in {size_text(group.stored)}"
    title = tag("summary", tag("strong", group.name), f": {size}")
    body = (_layers(group), tag("h3", "What each model takes"), _takes(group.models), _pairs(group))
    return tag("details", title, body, class_="group", open="" if is_open else None)


def _layers(group: Group) -> Markup:
    def show(some: Sequence[ModelGroup]) -> Markup:
        return bars(
            (
                [each.models[0].card.name, _others(each)],
                strip([_cell(i, layer) for i, layer in enumerate(each.models[0].layers)]),
                tag("span", f"{len(each.models[0].layers)} layers"),
            )
            for each in some
        )

    return folded(group.alike, _ROWS, "row", show)


def _others(each: ModelGroup) -> Markup:
    names = [model.card.name for model in each.models[1:]]
    return tag("small", f"and {named(names, 4)}") if names else Markup("")


def _cell(position: int, layer: LayerFacts) -> tuple[str, str, bool]:
    count = len(layer.riders)
    colour = "own" if count == 1 else "pale" if count == 2 else "shared"
    whose = f"of {named(layer.riders, 4)}" if count > 1 else "not shared"
    delta = ", a delta here" if layer.has_delta else ""
    note = f"layer {position} ({layer.kind}, {size_text(layer.nbytes)}): {whose}{delta}"
    return colour, note, layer.has_delta


def _takes(models: Sequence[ModelFacts]) -> Markup:
    """Each model's bytes: shared with others, its own."""
    most = max(model.card.total_bytes for model in models)

    def show(some: Sequence[ModelFacts]) -> Markup:
        return bars(
            (
                [model.card.name, tag("small", _description(model))],
                bar(_parts(model), most, size_text),
                _own_of(model),
            )
            for model in some
        )

    colours = (("shared", "shared with another model"), ("own", "its own: what removing it frees"))
    return join((key(colours), folded(models, _ROWS, "model", show), _numbers(models)))


def _parts(model: ModelFacts) -> list[BarPiece]:
    return [
        BarPiece("shared with other models", model.card.shared_bytes, "shared"),
        BarPiece("its own", model.card.own_bytes, "own"),
    ]


def _numbers(models: Sequence[ModelFacts]) -> Markup:
    rows = [
        (
            *(m.card.name, m.card.kind, m.card.format, m.card.parent or "", m.tier),
            *(size_text(n) for n in (m.card.total_bytes, m.card.shared_bytes, m.card.own_bytes)),
            str(sum(len(layer.riders) == 1 for layer in m.layers)),
            str(sum(len(layer.riders) > 1 for layer in m.layers)),
            str(sum(layer.has_delta for layer in m.layers)),
            tag("code", m.card.root),
        )
        for m in models
    ]
    columns = (
        "model", "kind", "format", "base", "tier", "bytes", "shared", "own", "own layers",
        "shared layers", "with a delta", "added from",
    )  # fmt: skip
    return table(columns, rows)


def _description(model: ModelFacts) -> str:
    base = f" on {model.card.parent}" if model.card.parent else ""
    lossy = "" if model.card.exact else ", lossy"
    return f"{model.card.kind}{base}, {model.card.format}{lossy}"


def _own_of(model: ModelFacts) -> Markup:
    own, total = model.card.own_bytes, model.card.total_bytes
    return tag("span", size_text(own), tag("small", f"of {size_text(total)}"))


def _pairs(group: Group) -> Markup:
    """Bytes that the models of each pair have in common."""
    labels = [each.label for each in group.alike[: len(group.shared)]]
    shown = labels[:_PAIRS]
    values = [line[:_PAIRS] for line in group.shared[:_PAIRS]]
    plot = heatmap(shown, shown, values, size_text)
    rows = [
        (name, *(size_text(n) for n in line))
        for name, line in zip(labels, group.shared, strict=True)
    ]
    title = tag("h3", "Shared exactly, pair by pair")
    numbers = table(("model", *labels), rows)
    words = tag("p", _pair_words(group, max(map(max, values))))
    return join((title, words, sideways(plot, heatmap_width(shown, shown)), numbers))


def _pair_words(group: Group, most: int) -> Iterable[Child]:
    yield "Bytes of tensors that both models have, by content hash; on the diagonal all that a "
    yield f"model needs. Colours go from nothing to {size_text(most)}."
    if len(group.alike) < len(group.models):
        yield " Of models with the same layers the one with most bytes of its own stands for all; "
        yield "+1: for one more."
    if len(group.alike) > _PAIRS:
        yield f" The first {_PAIRS} rows are drawn; the numbers below go on."
    left_out = len(group.alike) - len(group.shared)
    if left_out:
        yield f" {counted(left_out, 'more row')} are not compared: "
        yield tag("code", "blockllm zoo show NAME")
        yield " says with whom a model shares."
