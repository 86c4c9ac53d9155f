"""A report on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from blockllm.bench.metrics import Report, Spread, Summary

_MILLI = 1000.0


def show(report: Report, console: Console) -> None:
    """Print everything about one run."""
    console.print(_total(report))
    if len(report.models) > 1:
        console.print(_parts("model", report.models))
    if len(report.tenants) > 1:
        console.print(_parts("tenant", report.tenants))
    if report.total.failed:
        console.print(f"[bold red]failed: {failures(report.total)}[/]")
    if report.total.short:
        console.print(
            f"[yellow]{report.total.short} answers have fewer tokens than asked for: does the "
            "server know ignore_eos?[/]"
        )


def failures(summary: Summary) -> str:
    """`3 timeout, 1 http-503`, or "" when nothing failed."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(summary.failed.items()))


def _total(report: Report) -> Table:
    total = report.total
    table = Table("what", "mean", "p50", "p95", "p99", "max", title="latency, milliseconds")
    for name, spread in (
        ("time to first token (TTFT)", total.ttft),
        ("time per output token (TPOT)", total.tpot),
        ("gap between chunks (ITL)", total.itl),
        ("end to end", total.e2e),
    ):
        table.add_row(name, *_numbers(spread, _MILLI))
    if total.slowdown:
        table.add_row("slowdown against solo, times", *_numbers(total.slowdown, 1.0))
    table.caption = "\n".join(_facts(report))
    table.caption_justify = "left"
    return table


def _facts(report: Report) -> list[str]:
    total = report.total
    lines = [
        f"{total.requests} requests in {report.duration:.2f} s, "
        f"{sum(total.failed.values())} failed",
        f"{total.output_tokens_per_second:.1f} output tokens/s, "
        f"{total.requests_per_second:.2f} requests/s "
        f"({total.prompt_tokens} prompt and {total.output_tokens} output tokens)",
    ]
    if total.attainment is not None and total.goodput is not None:
        lines.append(f"SLO kept by {total.attainment:.1%}: goodput {total.goodput:.2f} requests/s")
    if report.fairness is not None:
        lines.append(f"Jain's fairness index {report.fairness:.3f}")
    lines.append(
        f"client: {report.client_cpu_ms_per_token:.3f} ms CPU per token, "
        f"sent at most {report.max_lag * _MILLI:.1f} ms late"
    )
    return lines


def _numbers(spread: Spread | None, scale: float) -> list[str]:
    if spread is None:
        return ["-"] * 5
    values = (spread.mean, spread.p50, spread.p95, spread.p99, spread.max)
    return [f"{value * scale:.1f}" for value in values]


def _parts(what: str, parts: dict[str, Summary]) -> Table:
    table = Table(what, "requests", "failed", "tokens/s", "TTFT p50", "TTFT p95", "TPOT p50")
    table.add_column("e2e p95")
    table.add_column("slowdown")
    for name, part in parts.items():
        cells = [_at(part.ttft, "p50"), _at(part.ttft, "p95"), _at(part.tpot, "p50")]
        table.add_row(
            name or "-",
            str(part.requests),
            failures(part) or "0",
            f"{part.output_tokens_per_second:.1f}",
            *cells,
            _at(part.e2e, "p95"),
            f"{part.slowdown.p50:.2f}" if part.slowdown else "-",
        )
    return table


def _at(spread: Spread | None, field: str) -> str:
    return "-" if spread is None else f"{getattr(spread, field) * _MILLI:.0f} ms"
