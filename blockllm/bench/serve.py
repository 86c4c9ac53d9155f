"""`blockllm bench serve`: load one running server and report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import uvloop
from rich.console import Console

from blockllm.bench.client import Outcome, Target
from blockllm.bench.machine import machine_facts
from blockllm.bench.metrics import Report, Slo, SoloTimes, report
from blockllm.bench.plots import latency_cdfs, timeline
from blockllm.bench.runner import Run, Sender
from blockllm.bench.tables import show
from blockllm.bench.trace import read_trace, write_trace
from blockllm.bench.workload import Workload, plan, rows_of
from blockllm.errors import BlockllmError, ConfigError


class LoadTest(NamedTuple):
    """Everything `bench serve` was asked for. `solo`: solo requests per model, 0 for none."""

    url: str
    workload: Workload
    keys: Mapping[str, str]
    timeout: float = 600.0
    warm_up: int = 0
    solo: int = 0
    slo: Slo | None = None
    trace: Path | None = None
    save_trace: Path | None = None
    extra_body: Mapping[str, Any] | None = None
    json: Path | None = None
    out: Path | None = None


def read_keys(tenants: tuple[str, ...], file: Path | None, env: str) -> dict[str, str]:
    """API keys by tenant: lines `tenant:key` of a file, and comma-separated in `env`; an entry
    without a tenant is the key of requests without one. Raises ConfigError for a tenant without."""
    entries = [entry for entry in env.split(",") if entry.strip()]
    if file:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"keys {file}: {error}") from error
        entries += [line for line in lines if line.strip() and not line.startswith("#")]
    pairs = [entry.strip().rpartition(":") for entry in entries]
    keys = {tenant: key for tenant, _, key in pairs}
    missing = [tenant for tenant in tenants if tenant not in keys]
    if missing:
        raise ConfigError(f"keys: the tenant {missing[0]!r} has no API key")
    return keys


def run_load_test(test: LoadTest, console: Console) -> Report:
    """Plan, warm up, send, print, write. Raises BlockllmError when every request failed."""
    rows = read_trace(test.trace) if test.trace else []
    workload = test.workload
    if rows:
        named = tuple(dict.fromkeys(row.model for row in rows))
        workload = msgspec.structs.replace(workload, models=named)
    planned = plan(workload, rows)
    if test.save_trace:
        write_trace(test.save_trace, rows_of(planned))
    targets = {
        model: Target(test.url.rstrip("/").removesuffix("/v1"), model, dict(test.extra_body or {}))
        for model in workload.models
    }
    sender = Sender(targets, test.keys, test.timeout)

    async def measure() -> tuple[Run | None, Run]:
        await sender.warm_up(workload, test.warm_up)
        solo = await sender.solo(workload, test.solo) if test.solo else None
        progress = _Progress(console, len(planned))
        return solo, await sender.replay(planned, workload.concurrency, progress.note)

    solo, run = uvloop.run(measure())
    found = report(run, test.slo, SoloTimes(solo) if solo else None)
    show(found, console)
    _write(test, workload, run, found)
    if sum(found.total.failed.values()) == found.total.requests:
        first = run.outcomes[0]
        raise BlockllmError(f"every request failed; the first: {first.error}: {first.detail}")
    return found


class _Progress:
    """A line whenever another tenth of the requests has ended, and one for the first failure."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self._ended = self._failed = 0

    def note(self, outcome: Outcome) -> None:
        self._ended += 1
        if outcome.error and not self._failed:
            self._console.print(f"request {outcome.index}: {outcome.error}: {outcome.detail}")
        self._failed += bool(outcome.error)
        if 10 * self._ended // self._total != 10 * (self._ended - 1) // self._total:
            failed = f", {self._failed} failed" if self._failed else ""
            self._console.print(f"{self._ended} of {self._total} requests ended{failed}")


def _write(test: LoadTest, workload: Workload, run: Run, found: Report) -> None:
    content = msgspec.json.encode(
        {
            "machine": machine_facts(),
            "url": test.url,
            "workload": workload,
            "slo": test.slo,
            "report": found,
            "outcomes": run.outcomes,
        }
    )
    files = [test.json] if test.json else []
    if test.out:
        test.out.mkdir(parents=True, exist_ok=True)
        files.append(test.out / "results.json")
        latency_cdfs(test.out / "latency.png", {"all requests": run.outcomes})
        timeline(test.out / "timeline.png", run.outcomes)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(msgspec.json.format(content))
