"""The page: headline, sections, footer. No script, nothing from the network."""

from __future__ import annotations

import time
from importlib.metadata import version

from blockllm.offline.report import quality, sections
from blockllm.offline.report.costs import costs
from blockllm.offline.report.facts import Facts
from blockllm.offline.report.markup import Markup, join, tag
from blockllm.offline.report.sharing import sharing
from blockllm.offline.report.style import CSS
from blockllm.offline.report.units import counted, size_text

# a browser that keeps to it runs no script and loads nothing, whatever a name contains
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def headline(facts: Facts) -> str:
    """`17 models in 2.7 GB instead of 9.3 GB`."""
    sizes = f"{size_text(facts.stored)} instead of {size_text(facts.separate)}"
    return f"{counted(len(facts.models), 'model')} in {sizes}"


def render(facts: Facts) -> str:
    """The whole page as HTML."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"Zoo: {headline(facts)}"),
        tag("style", Markup(CSS)),
    )
    parts = [_top(facts)]
    if facts.models:
        parts += [
            sections.totals(facts),
            sections.tiers(facts),
            sharing(facts),
            quality.losses(facts),
            quality.pairs(facts),
            costs(facts),
        ]
    body = tag("body", tag("main", parts, _footer()))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _top(facts: Facts) -> Markup:
    if not facts.models:
        return tag("h1", "This zoo is empty")
    models = counted(len(facts.models), "model")
    title = tag("h1", f"{models} in ", tag("em", size_text(facts.stored)), " instead of ",
                size_text(facts.separate))  # fmt: skip
    times = facts.separate / max(facts.stored, 1)
    against = facts.files / max(facts.stored, 1)
    words = (
        f"{times:.1f} times less than a copy for every model, {against:.1f} times less than a file "
        "for every checkpoint and adapter. Layers that several models have are kept, loaded and "
        "batched once."
    )
    return join((title, tag("p", words, class_="lead")))


def _footer() -> Markup:
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    words = (
        f"Made by blockllm {version('blockllm')}, {made}. Bytes are of weights as stored, in "
        "decimal units; catalogue and tokenizer files are not counted."
    )
    return tag("footer", words)
