"""Pictures of runs: latency distributions, a timeline, and comparisons of arms."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockllm.bench.client import Outcome
from blockllm.bench.metrics import gaps, tpot, ttft

Runs = Mapping[str, Sequence[Outcome]]  # by arm

mpl.use("Agg")  # files only: no window system is asked for


def latency_cdfs(path: Path, runs: Runs) -> None:
    """Share of requests (of gaps, for ITL) within a time: one panel per latency, a line per arm."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    panels: list[Axes] = []
    for place, title in enumerate(("TTFT", "TPOT", "ITL", "end to end"), 1):
        panel = figure.add_subplot(1, 4, place)
        panels.append(panel)
        panel.set(title=title, xlabel="seconds", ylabel="share", ylim=(0, 1))
        panel.grid(alpha=0.3)
    for arm, outcomes in runs.items():
        good = [outcome for outcome in outcomes if not outcome.error]
        values: list[list[float | None]] = [
            [ttft(o) for o in good],
            [tpot(o) for o in good],
            [gap for o in good for gap in gaps(o)],
            [o.end for o in good],
        ]
        for panel, column in zip(panels, values, strict=True):
            ordered = sorted(value for value in column if value is not None)
            if ordered:
                shares = [(rank + 1) / len(ordered) for rank in range(len(ordered))]
                panel.step(ordered, shares, where="post", label=arm)
    panels[0].legend(fontsize="small")
    figure.savefig(path)


def timeline(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Above: each request from sending to its end, first token marked. Below: tokens a second."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    above = figure.add_subplot(2, 1, 1)
    below = figure.add_subplot(2, 1, 2, sharex=above)
    for outcome in outcomes:
        colour = "tab:red" if outcome.error else "tab:blue"
        first = outcome.arrivals[0] if outcome.arrivals else outcome.end
        above.hlines(outcome.index, outcome.sent, outcome.sent + first, "lightgray")
        above.hlines(outcome.index, outcome.sent + first, outcome.sent + outcome.end, colour)
    above.set(
        ylabel="request", title="gray: waiting for the first token; blue: answer; red: failed"
    )
    times = [o.sent + at for o in outcomes for at in o.arrivals]
    if times:
        seconds = range(int(max(times)) + 2)
        below.hist(times, bins=list(seconds), histtype="step")
    below.set(xlabel="seconds", ylabel="chunks with tokens per second")
    figure.savefig(path)


def bars(
    path: Path, title: str, ylabel: str, groups: Mapping[str, Mapping[str, Sequence[float]]]
) -> None:
    """One group of bars per key of `groups`, one bar per arm in it: the median of its values,
    with a whisker from the least to the greatest."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.add_subplot()
    arms = list(dict.fromkeys(arm for group in groups.values() for arm in group))
    width = 0.8 / max(1, len(arms))
    for position, arm in enumerate(arms):
        own = [(place, group[arm]) for place, group in enumerate(groups.values()) if group.get(arm)]
        places = [place + position * width for place, _ in own]
        middles = [statistics.median(values) for _, values in own]
        below = [middle - min(values) for middle, (_, values) in zip(middles, own, strict=True)]
        above = [max(values) - middle for middle, (_, values) in zip(middles, own, strict=True)]
        panel.bar(places, middles, width, yerr=(below, above), capsize=3, label=arm)
    panel.set(title=title, ylabel=ylabel)
    middle = (len(arms) - 1) * width / 2
    panel.set_xticks([place + middle for place in range(len(groups))], list(groups))
    panel.grid(alpha=0.3, axis="y")
    panel.legend(fontsize="small")
    figure.savefig(path)
