"""Writes docs/performance.md: one table per claim, every number from a results file.

    python -m tools.pages.performance_page [--check]

docs/claims.toml names the claims, their commands and where their numbers lie. A row is read
from `bench compare`'s results (a folder of docs/bench/results: figures and ratios are medians over
its pairs, with the least and the largest ratio) or from a file of facts (a JSON file there, for
what other commands print). `--check` writes nothing and exits with 1 if the page is not current.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tools.pages.wrap import wrap

DOCS = Path(__file__).resolve().parents[2] / "docs"
CLAIMS, RESULTS, PAGE = DOCS / "claims.toml", DOCS / "bench/results", DOCS / "performance.md"
HEAD = ["what", "ours", "theirs", "ratio (least to most)", "machine", "run of"]


class Measure(NamedTuple):
    """Where a run's report keeps a figure, and how it is shown."""

    path: tuple[str, ...]  # in a run of results.json
    unit: str
    scale: float = 1.0
    index: int | None = None


TOTAL = ("report", "total")
MEASURES = {
    "tokens/s": Measure((*TOTAL, "output_tokens_per_second"), "tokens/s"),
    "first token": Measure((*TOTAL, "ttft", "p50"), "s"),
    "first token, p95": Measure((*TOTAL, "ttft", "p95"), "s"),
    "time per token": Measure((*TOTAL, "tpot", "p50"), "ms", 1e3),
    "longest gaps (p99)": Measure((*TOTAL, "itl", "p99"), "s"),
    "whole answer, p95": Measure((*TOTAL, "e2e", "p95"), "s"),
    "memory when ready": Measure(("at_rest",), "MiB", 2**-20, 0),
    "memory after": Measure(("after",), "MiB", 2**-20, 0),
}


def page(claims: dict[str, Any]) -> str:
    """The whole page, from the claims and the results files they name."""
    parts = ["# Performance", *_prose(claims["text"])]
    parts += [f"- **{m['name']}**: {m['text']}" for m in claims["machine"]]
    processors = {m["processor"]: m["name"] for m in claims["machine"]}
    for claim in claims["claim"]:
        parts += [f"## {claim['title']}", *_prose(claim["text"])]
        parts.append("```\n" + claim["command"].strip() + "\n```")
        lines = [_cells(HEAD), _cells(["---"] * len(HEAD))]
        lines += [_cells(cells) for row in claim["row"] for cells in _rows(row, processors)]
        parts.append("\n".join(lines))
    return _joined([*parts, "## Known limits", *_prose(claims["limits"])])


def _prose(text: str) -> list[str]:
    return [wrap(part.strip()) for part in text.strip().split("\n\n")]


def _joined(parts: list[str]) -> str:
    """Blank lines between all but the items of a list."""
    text = parts[0]
    for before, part in itertools.pairwise(parts):
        text += ("\n" if before.startswith("- ") and part.startswith("- ") else "\n\n") + part
    return text + "\n"


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rows(row: dict[str, Any], processors: dict[str, str]) -> Iterator[list[str]]:
    if "facts" in row:
        yield from _fact_rows(row["facts"])
        return
    results = json.loads((RESULTS / row["results"] / "results.json").read_text())
    machine = processors[results["machine"]["processor"]]
    run = f"[{results['machine']['time'][:10]}](bench/results/{row['results']}/table.md)"
    for name in row["measures"]:
        ours, theirs = (
            _figures(results, row["load"], row[arm], name) for arm in ("ours", "theirs")
        )
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        unit = MEASURES[name].unit
        what = f"{row['what']}: {name}" + ("" if unit == name else f", {unit}")
        figures = [number(statistics.median(values)) for values in (ours, theirs)]
        ratio = _ratio([statistics.median(ratios), min(ratios), max(ratios)])
        yield [what, *figures, ratio, machine, run]


def _figures(results: dict[str, Any], load: str, arm: str, name: str) -> list[float]:
    """One figure of an arm under a load, in order of the pairs."""
    measure = MEASURES[name]
    found: dict[int, float] = {}
    for run in results["runs"]:
        if (run["load"], run["arm"]) == (load, arm):
            value: Any = run
            for key in measure.path:
                value = value[key]
            found[run["pair"]] = value if measure.index is None else value[measure.index]
    if not found:
        raise SystemExit(f"{results['name']}: no runs of {arm!r} under {load!r}")
    return [found[pair] * measure.scale for pair in sorted(found)]


def _fact_rows(name: str) -> Iterator[list[str]]:
    facts = json.loads((RESULTS / f"{name}.json").read_text())
    run = f"[{facts['date']}](bench/results/{name}.json)"
    for fact in facts["facts"]:
        ours, theirs = fact["ours"], fact.get("theirs")
        ratio = fact.get("ratio") or ([] if theirs is None else _bounds(ours, theirs))
        what = fact["what"]
        if fact["unit"] not in what.split():
            what += f", {fact['unit']}"
        in_short = len(ratio) == 3  # which has the spread
        figures = ["" if value is None else _figure(value, in_short) for value in (ours, theirs)]
        yield [what, *figures, _ratio(ratio), facts["machine"], run]


def _figure(value: Any, in_short: bool) -> str:
    """A number, or `least to most`, or `median (least to most)`, as the file has them."""
    if not isinstance(value, list):
        return f"{value:,}"
    if in_short and len(value) == 3:
        return f"{value[0]:,}"
    if len(value) == 2:
        return " to ".join(dict.fromkeys(map(str, value)))
    return f"{value[0]:,} ({value[1]:,} to {value[2]:,})"


def _bounds(ours: Any, theirs: Any) -> list[float]:
    """The ratio of two numbers; of two ranges, the least and the largest that they allow."""
    if not isinstance(ours, list) and not isinstance(theirs, list):
        return [ours / theirs]
    mine, other = (x if isinstance(x, list) else [x] for x in (ours, theirs))
    return [min(mine) / max(other), max(mine) / min(other)]


def _ratio(values: list[float]) -> str:
    shown = [f"{value:.1f}" if value >= 9.95 else f"{value:.2f}" for value in values]
    if len(shown) < 3:
        return " to ".join(shown)
    return f"**{shown[0]}** ({shown[1]} to {shown[2]})"


def number(value: float) -> str:
    """Three digits, or all that are whole: 0.59, 21.1, 1,093."""
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/performance.md.")
    parser.add_argument("--check", action="store_true", help="only compare; status 1 if it differs")
    check = parser.parse_args().check
    text = page(tomllib.loads(CLAIMS.read_text(encoding="utf-8")))
    if not check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        sys.exit("docs/performance.md is not current: run `python -m tools.pages.performance_page`")


if __name__ == "__main__":
    main()
