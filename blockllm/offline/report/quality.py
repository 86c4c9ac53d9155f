"""Sections of the page about quality: what lossy choices lose, how near layers are."""

from __future__ import annotations

import time
from collections.abc import Sequence

from blockllm.core import Measurement
from blockllm.offline.report.facts import Facts, PairMap
from blockllm.offline.report.markup import Markup, tag
from blockllm.offline.report.plots import axis, heatmap, heatmap_width, spots
from blockllm.offline.report.sections import (
    BarRow,
    Row,
    bars,
    folded,
    named,
    section,
    sideways,
    table,
)
from blockllm.offline.report.units import number_text

_ROWS, _PANELS = 15, 6  # measurements and maps that are seen without a click


def losses(facts: Facts) -> Markup:
    """What every lossy choice was measured to lose."""
    missing = (
        [tag("p", "Lossy and not measured: ", tag("strong", named(facts.unmeasured, 12)),
             ". Run ", tag("code", "blockllm zoo measure"), ".")]
        if facts.unmeasured
        else []
    )  # fmt: skip
    if not facts.losses:
        nothing = "Nothing was measured" if facts.unmeasured else "Every model is exact"
        return section("What lossy choices lose", f"{nothing}.", *missing)
    seen = [loss.kl for loss in facts.losses if loss.kl > 0]
    least, most = min([1e-5, *seen]) / 2, max([1.0, *seen])
    rows: list[BarRow] = [
        (
            [loss.model, tag("small", f"against {loss.reference}")],
            spots([loss.kl], least, most),
            tag("span", number_text(loss.kl), tag("small", f"{loss.agreement:.1%} same")),
        )
        for loss in facts.losses
    ]

    def show(some: Sequence[BarRow]) -> Markup:
        return bars([*some, ("", axis(least, most), tag("small", "nats"))])

    caption = (
        "KL divergence of next-token distributions from the reference's, in nats per token, on a "
        "logarithmic axis; left is better. The second number is the share of positions where both "
        "find the same token most likely."
    )
    columns = (
        "model", "against", "perplexity", "reference", "rise", "KL", "same first choice", "tokens",
        "text", "measured",
    )  # fmt: skip
    return section(
        "What lossy choices lose",
        caption,
        *missing,
        folded(rows, _ROWS, "measurement", show),
        table(columns, [_loss_row(loss) for loss in facts.losses]),
    )


def _loss_row(loss: Measurement) -> Row:
    return (
        loss.model,
        loss.reference,
        f"{loss.perplexity:.3f}",
        f"{loss.reference_perplexity:.3f}",
        f"{loss.rise:+.2%}",
        f"{loss.kl:.5f}",
        f"{loss.agreement:.2%}",
        str(loss.num_tokens),
        tag("code", loss.text[:12]),
        time.strftime("%Y-%m-%d", time.gmtime(loss.created)),
    )


def pairs(facts: Facts) -> Markup:
    """Findings about pairs of layers."""
    if not facts.pairs:
        return section("Nearly equal layers", "No layers of this zoo have been compared.")
    return section(
        "Nearly equal layers",
        "How close layers are that could stand in for each other. A label is a model and the "
        "layer's position in it; stronger colour is larger. Large cosine or agreement and small KL "
        "mean close; of several models that have the layer, the worst counts.",
        folded(facts.pairs, _PANELS, "map", _pair_panels),
    )


def _pair_panels(some: Sequence[PairMap]) -> Markup:
    return tag("div", [_pair_panel(found) for found in some], class_="maps")


def _pair_panel(found: PairMap) -> Markup:
    known = [value for line in found.values for value in line if value is not None]
    # cosines crowd below 1: colours start at the least one
    least = 0.0 if found.number.endswith("kl") else min(known)
    plot = heatmap(found.rows, found.columns, found.values, number_text, least)
    title = f"{found.kind}, {found.number}: {number_text(min(known))} to {number_text(max(known))}"
    rows = [
        (name, *("" if value is None else f"{value:.5g}" for value in line))
        for name, line in zip(found.rows, found.values, strict=True)
    ]
    columns = ("layer", *found.columns)
    content = (
        tag("h3", title),
        sideways(plot, heatmap_width(found.rows, found.columns)),
        table(columns, rows),
    )
    return tag("figure", content)
