"""The demo's tables."""

from __future__ import annotations

import statistics

from rich.table import Table
from rich.text import Text

from blockllm.core import ModelCard
from blockllm.zoo import AddReport
from tools.demo.measure import MAX_TOKENS, REQUESTS_PER_MODEL, Measured


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"


def zoo_table(rows: list[tuple[AddReport, ModelCard]]) -> Table:
    """Per model: its bytes, what adding it stored, and how many of its blocks others share."""
    table = Table(title="The zoo: each model's bytes, and what was new to the store")
    for column in ("model", "kind", "parent"):
        table.add_column(column)
    for column in ("its bytes", "stored", "blocks", "shared"):
        table.add_column(column, justify="right")
    for report, card in rows:
        table.add_row(
            report.name,
            card.kind,
            card.parent or "",
            _megabytes(report.total_bytes),
            _megabytes(report.stored_bytes),
            str(card.num_blocks),
            str(card.num_shared_blocks),
        )
    total = sum(report.total_bytes for report, _ in rows)
    stored = sum(report.stored_bytes for report, _ in rows)
    table.add_section()
    table.add_row("together", "", "", _megabytes(total), _megabytes(stored), "", "")
    return table


def answers_table(prompts: dict[str, str], answers: dict[str, str]) -> Table:
    """Every model's prompt and answer, side by side."""
    table = Table(title="All models at once (temperature 0.7, seed 3)", show_lines=True)
    table.add_column("model")
    table.add_column("prompt", overflow="fold", ratio=2)
    table.add_column("answer", overflow="fold", ratio=3)
    for model, answer in answers.items():
        table.add_row(model, Text(prompts[model].strip()), Text(answer.strip("\n")))
    return table


def measured_table(measured: Measured) -> Table:
    """Memory and speed with shared blocks."""
    table = Table(title="What sharing is worth", show_header=False)
    table.add_column("what")
    table.add_column("seen", justify="right")
    saved = 1 - measured.weight_bytes / measured.unshared_bytes
    table.add_row(
        f"weights of {measured.models} models in memory",
        f"{_megabytes(measured.weight_bytes)} instead of "
        f"{_megabytes(measured.unshared_bytes)} ({saved:.0%} saved)",
    )
    requests = measured.models * REQUESTS_PER_MODEL
    table.add_row(
        f"{requests} requests of {MAX_TOKENS} tokens, all models mixed",
        f"{statistics.median(measured.mixed):,.0f} tokens/s",
    )
    table.add_row(
        "the same requests, one model after another",
        f"{statistics.median(measured.in_turn):,.0f} tokens/s",
    )
    ratios = [m / t for m, t in zip(measured.mixed, measured.in_turn, strict=True)]
    table.add_row(
        "ratio (median of interleaved pairs)",
        f"{measured.ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})",
    )
    for span in sorted(measured.spans, key=lambda s: -s.models):
        kind = f"shared by {span.models}" if span.models > 1 else "private"
        table.add_row(
            f"rows per hop at span {span.span} ({kind})", f"{span.rows / max(span.hops, 1):.1f}"
        )
    return table
