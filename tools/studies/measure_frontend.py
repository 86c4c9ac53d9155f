"""What the front end costs: overhead, rates and CPU, over an agent that computes nothing.

`python -m tools.studies.measure_frontend [--seconds 5] [--out out/frontend.json]`

Runs the real server with a stand-in agent: 1, 8 and 64 streams at a pace of 20 ms per token, 64
streams flat out, one-token requests flat out, and once more with its stages timed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

import msgspec
import uvloop
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from blockllm.observability import names
from tools.studies.frontend_client import ClientLoad, Seen, Traffic
from tools.studies.frontend_standin import MODEL, Options

PACE = 0.02  # seconds per token
WARM_UP = 1.0  # seconds
QUANTILES = (0.5, 0.95, 0.99)
OVERHEADS = {"in": names.REQUEST_OVERHEAD.name, "out": names.TOKEN_OVERHEAD.name}
SCENARIOS = {
    "1 stream, paced": (ClientLoad(1, 128), PACE),
    "8 streams, paced": (ClientLoad(8, 128), PACE),
    "64 streams, paced": (ClientLoad(64, 128), PACE),
    "64 streams, in step": (ClientLoad(64, 128, in_step=True), PACE),
    "64 streams, flat out": (ClientLoad(64, 512), 0.0),
    "one-token requests": (ClientLoad(16, 1, stream=False), 0.0),
}
STAGED = "64 streams, paced"
CONSOLE = Console(width=140)

Buckets = dict[float, float]  # upper bound → observations up to it


class Row(NamedTuple):
    """One scenario. Overheads in milliseconds at QUANTILES; CPU of the HTTP process."""

    name: str
    requests_per_second: float
    tokens_per_second: float
    overhead_in: list[float]
    overhead_out: list[float]
    cpu_share: float
    cpu_ms_per_request: float
    cpu_us_per_token: float


class Reading(NamedTuple):
    """The server's books at one moment."""

    buckets: dict[str, Buckets]  # by name of the histogram
    cpu_seconds: float


class Stage(NamedTuple):
    """One stage of the front end."""

    name: str
    calls: int
    microseconds: float  # per call
    share: float  # of the process's CPU time


def quantile(buckets: Buckets, share: float) -> float:
    """Seconds below which `share` of the observations lie, linear inside a bucket, as Prometheus
    does it; nan without observations."""
    bounds = sorted(buckets)
    total = buckets[bounds[-1]] if bounds else 0
    if not total:
        return float("nan")
    rank = share * total
    upper = next(bound for bound in bounds if buckets[bound] >= rank)
    position = bounds.index(upper)
    lower = bounds[position - 1] if position else 0.0
    if upper == float("inf"):
        return lower
    below = buckets[lower] if position else 0.0
    inside = buckets[upper] - below
    return lower + (upper - lower) * ((rank - below) / inside if inside else 1.0)


def difference(after: Buckets, before: Buckets) -> Buckets:
    """What was observed in between."""
    return {bound: count - before.get(bound, 0.0) for bound, count in after.items()}


def read_buckets(text: str, histogram: str) -> Buckets:
    """One histogram without labels of a metrics page."""
    return {
        float(sample.labels["le"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"{histogram}_bucket"
    }


def summarise(name: str, before: Reading, after: Reading, seen: Seen) -> Row:
    """The row of one scenario."""
    cpu = after.cpu_seconds - before.cpu_seconds
    overheads = {
        way: [
            1000 * quantile(difference(after.buckets[h], before.buckets[h]), q) for q in QUANTILES
        ]
        for way, h in OVERHEADS.items()
    }
    return Row(
        name,
        seen.requests / seen.seconds,
        seen.tokens / seen.seconds,
        overheads["in"],
        overheads["out"],
        cpu / seen.seconds,
        1e3 * cpu / max(seen.requests, 1),
        1e6 * cpu / max(seen.tokens, 1),
    )


def stages_of(seen: dict[str, Any]) -> list[Stage]:
    """Stages by share of the CPU time, and what is left."""
    total = seen["cpu_seconds"]
    stages = [
        Stage(name, seen["calls"][name], 1e6 * seconds / seen["calls"][name], seconds / total)
        for name, seconds in seen["seconds"].items()
    ]
    rest = total - sum(seen["seconds"].values())
    stages.append(Stage("everything else, start included", 1, 1e6 * rest, rest / total))
    return sorted(stages, key=lambda stage: -stage.share)


class StandIn:
    """A running server process."""

    def __init__(self, options: Options) -> None:
        command = [
            sys.executable,
            "-m",
            "tools.studies.frontend_standin",
            msgspec.json.encode(options),
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        lines = itertools.takewhile(bool, self._process.stdout)
        ready = next((line for line in lines if " ready on " in line), "")
        if not ready:
            raise SystemExit("the stand-in server did not start")
        self.port = int(ready.strip().rpartition(":")[2])

    def read(self) -> Reading:
        """Its books now."""
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as response:
            text = response.read().decode()
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        cpu = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        return Reading({name: read_buckets(text, name) for name in OVERHEADS.values()}, cpu)

    def stop(self) -> None:
        """End it in order."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(timeout=30)
        assert self._process.stdout is not None
        self._process.stdout.close()
        if status:
            raise SystemExit(f"the stand-in server ended with status {status}")


@contextlib.contextmanager
def stand_in(options: Options) -> Iterator[StandIn]:
    """A server for as long as it is needed."""
    server = StandIn(options)
    try:
        yield server
    finally:
        server.stop()


async def run(
    name: str, load: ClientLoad, pace: float, seconds: float, stages_file: str = ""
) -> Row:
    """Run one scenario on a server of its own."""
    with stand_in(Options(pace, stages_file)) as server:
        traffic = Traffic(server.port, MODEL, load)
        await traffic.start()
        await asyncio.sleep(WARM_UP)
        before = await asyncio.to_thread(server.read)
        seen = await traffic.watch(seconds)
        after = await asyncio.to_thread(server.read)
        traffic.close()
    # a paced token is an event; flat out, one event carries many of them
    tokens = seen.events if pace else seen.tokens
    return summarise(name, before, after, seen._replace(tokens=tokens))


def table_of(rows: Sequence[Row]) -> Table:
    """All scenarios."""
    table = Table(
        title="front end, engine excluded (p50 / p95 / p99 in ms; CPU of the HTTP process)"
    )
    for column in ("scenario", "requests/s", "tokens/s", "request in", "token out", "CPU"):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    table.add_column("ms/request", justify="right")
    table.add_column("µs/token", justify="right")
    for row in rows:
        ways = [" / ".join(f"{x:.2f}" for x in way) for way in (row.overhead_in, row.overhead_out)]
        cost = [f"{row.cpu_ms_per_request:.2f}", f"{row.cpu_us_per_token:.0f}"]
        rates = [f"{row.requests_per_second:,.1f}", f"{row.tokens_per_second:,.0f}"]
        table.add_row(row.name, *rates, *ways, f"{row.cpu_share:.0%}", *cost)
    return table


def stage_table(stages: Sequence[Stage]) -> Table:
    """Where the CPU time goes."""
    table = Table(title=f"stages of: {STAGED}")
    for column in ("stage", "calls", "µs per call", "share of CPU"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for stage in stages:
        table.add_row(
            stage.name, f"{stage.calls:,}", f"{stage.microseconds:,.1f}", f"{stage.share:.1%}"
        )
    return table


async def measure(seconds: float, chosen: Sequence[str]) -> tuple[list[Row], list[Stage]]:
    """The chosen scenarios, one after another, then the stages."""
    rows = [await run(name, *SCENARIOS[name], seconds) for name in chosen]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "stages.json"
        await run(STAGED, *SCENARIOS[STAGED], seconds, str(file))
        return rows, stages_of(json.loads(file.read_text(encoding="utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time per scenario")
    parser.add_argument("--only", choices=list(SCENARIOS), action="append", help="some scenarios")
    parser.add_argument("--out", type=Path, help="write the numbers here as JSON")
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows, stages = runner.run(measure(options.seconds, options.only or list(SCENARIOS)))
    CONSOLE.print(table_of(rows))
    CONSOLE.print(stage_table(stages))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        report = {"rows": [row._asdict() for row in rows], "stages": [s._asdict() for s in stages]}
        options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
