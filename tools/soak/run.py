"""Soak test: thousands of mixed requests with random cancels and disconnects on a real server.

Starts `blockllm serve` over the demo family, asks, watches memory and pages, and holds every
repeated greedy question against its first answer. Exit status 1 if anything is not as it should.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
from rich.console import Console
from rich.table import Table

from tools.demo import FAMILY, MODELS, ROOT
from tools.demo.server import free_port, start_server, stop_server
from tools.demo.zoo import build_zoo
from tools.soak.cases import Case, RequestWriter
from tools.soak.client import Client, read_answer
from tools.soak.disturb import Disturbances, change_zoo, kill_agents, quiet
from tools.soak.plot import draw
from tools.soak.watch import (
    Metrics,
    Sample,
    Trend,
    descriptors,
    read_metrics,
    resident,
    trends,
)

CONSOLE = Console()
REPLAYS = 200
LOOK_SECONDS = 5.0
BURST, BURST_EVERY = 30, 200  # so many of so many requests come at once, so that pages run out
KEYS = ("soak-of-the-first-tenant", "soak-of-the-second-tenant", "soak-of-the-third-tenant")


class Options(NamedTuple):
    """How long and how hard. With `rate`, requests come at that many a second whatever the server
    does; else `concurrency` clients ask without a pause."""

    requests: int
    concurrency: int
    seed: int
    minutes_limit: float
    rate: float = 0.0
    kill_minutes: float = 0.0  # the agent is killed that often; 0: never
    changes: bool = False  # models are added to the zoo and removed under the server


class Outcome(NamedTuple):
    """Everything the report needs."""

    seconds: float
    client: Client
    samples: list[Sample]
    last: Metrics
    ties: int
    replayed: int
    seen: Disturbances
    start: float


async def soak(
    server: subprocess.Popen[bytes], port: int, options: Options, zoo: Path, out: Path
) -> Outcome:
    """Play all cases, let the server come to rest, and replay greedy questions alone."""
    seen = quiet()
    client, samples = Client(port, options.concurrency, KEYS, seen), list[Sample]()
    cards = (await client.get("/v1/models")).json()["data"]
    models = {card["id"]: int(card["max_model_len"]) for card in cards}
    author = RequestWriter(options.seed, models, num_greedy=max(8, options.requests // 20))
    start = time.monotonic()
    issued = _issued(author.cases(options.requests), start, options.minutes_limit)

    async def look() -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with contextlib.suppress(httpx2.HTTPError):  # it may be starting again
                samples.append(
                    await _look(server, client, sum(client.results.ways.values()), start)
                )
                _write(out.with_suffix(".samples.json"), samples)

    async def work() -> None:
        for case in issued:
            await client.send(case)

    async def pace() -> None:
        async with asyncio.TaskGroup() as under_way:
            for case in issued:
                under_way.create_task(client.send(case))
                if case.number % BURST_EVERY >= BURST:
                    await asyncio.sleep(random.Random(case.number).expovariate(options.rate))

    beside = [asyncio.create_task(look())]
    if options.changes:
        beside.append(asyncio.create_task(change_zoo(zoo, FAMILY / "lora-a", seen)))
    if options.kill_minutes:
        beside.append(asyncio.create_task(kill_agents(server.pid, options.kill_minutes, seen)))
    workers = [pace()] if options.rate else [work() for _ in range(options.concurrency)]
    await asyncio.gather(*workers)
    for task in beside:
        task.cancel()
    seconds = time.monotonic() - start
    await _rest(client)
    replayed = await _replay_alone(client)
    ties = sum([await client.is_tie(mismatch) for mismatch in client.results.mismatches])
    last = await _rest(client)
    await client.close()
    return Outcome(seconds, client, samples, last, ties, replayed, seen, start)


def _issued(cases: Iterator[Case], start: float, minutes: float) -> Iterator[Case]:
    for case in cases:
        if time.monotonic() - start > 60 * minutes:
            return
        yield case


async def _look(server: subprocess.Popen[bytes], client: Client, done: int, start: float) -> Sample:
    metrics = read_metrics((await client.get("/metrics")).text)
    recent = sorted(client.latencies) or [0.0]
    client.latencies.clear()
    latency = {
        share: recent[min(len(recent) - 1, len(recent) * share // 100)] for share in (50, 99)
    }
    seconds, pid = time.monotonic() - start, server.pid
    return Sample(done, seconds, resident(pid), descriptors(pid), latency, metrics)


def _write(path: Path, samples: list[Sample]) -> None:
    """What was seen so far, so that a run that is cut off leaves it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([{**s._asdict(), "metrics": s.metrics._asdict()} for s in samples]))


async def _rest(client: Client, patience: float = 20) -> Metrics:
    """The metrics once nothing runs; the server refreshes them about once a second."""
    deadline = time.monotonic() + patience
    while True:
        await asyncio.sleep(1.5)
        metrics = read_metrics((await client.get("/metrics")).text)
        if metrics.is_idle or time.monotonic() > deadline:
            return metrics


async def _replay_alone(client: Client) -> int:
    """Ask greedy questions once more, one at a time: company must not have changed the answer."""
    keys = list(client.results.firsts)[:REPLAYS]
    for key in keys:
        path, _, text = key.partition(" ")
        answer = await client.ask(path, {**json.loads(text), "return_token_ids": True})
        client.results.compare(key, read_answer(answer))
    return len(keys)


def judge(outcome: Outcome, found: list[Trend]) -> list[str]:
    """What is wrong; [] when all is well."""
    results, last = outcome.client.results, outcome.last
    wrong = results.problems[:20]
    unexplained, kills = len(results.mismatches) - outcome.ties, len(outcome.seen.kills)
    wrong += outcome.seen.problems[:20]
    for is_wrong, what in (
        (any(status >= 500 for status in results.statuses), f"5xx: {dict(results.statuses)}"),
        (unexplained > 0, f"{unexplained} greedy answers differ from the first one"),
        (not last.is_idle, f"not at rest at the end: {last}"),
        (last.restarts != kills, f"{last.restarts:.0f} restarts of {kills} killed agents"),
        (last.errors > 0 and not kills, f"{last.errors:.0f} ended in an error"),
        (not results.firsts, "no greedy request was answered"),
    ):
        wrong += [what] if is_wrong else []
    for trend in found:
        grown = trend.median_last_fifth - trend.median_second_fifth
        wrong += [] if trend.is_flat else [f"{trend.process}: memory grew by {grown:.1f} MB"]
    return wrong


def facts(outcome: Outcome, found: list[Trend]) -> dict[str, Any]:
    """The report as plain data."""
    results = outcome.client.results
    return {
        "requests": sum(results.ways.values()),
        "seconds": round(outcome.seconds, 1),
        "requests_per_second": round(sum(results.ways.values()) / outcome.seconds, 1),
        "tokens_received": results.num_tokens,
        "outcomes": dict(sorted(results.ways.items())),
        "statuses": {str(status): n for status, n in sorted(results.statuses.items())},
        "greedy_answers_compared": results.num_compared,
        "of_them_replayed_alone": outcome.replayed,
        "mismatches": len(results.mismatches),
        "of_them_ties_in_fp32": outcome.ties,
        "problems": len(results.problems),
        "zoo_changes": outcome.seen.changes[0],
        "agent_kills_at": [round(kill - outcome.start) for kill in outcome.seen.kills],
        "preemptions": outcome.last.preemptions,
        "at_rest": outcome.last._asdict(),
        "most_pages_used": max((s.metrics.used_pages for s in outcome.samples), default=0),
        "memory_mb": [trend._asdict() for trend in found],
        "samples": [{**s._asdict(), "metrics": s.metrics._asdict()} for s in outcome.samples],
    }


def show(report: dict[str, Any]) -> Table:
    """The report as a table; nested values are flattened, samples left out."""
    table = Table("what", "seen", title="Soak test")
    for name, value in report.items():
        if name == "samples":
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {number}" for key, number in value.items())
        elif name == "memory_mb":
            value = "\n".join(
                ", ".join(f"{k} {v:.2f}" if isinstance(v, float) else v for k, v in t.items())
                for t in value
            )
        table.add_row(name.replace("_", " "), str(value))
    return table


def prepare(zoo: Path, family: Path) -> None:
    """Use the zoo as it is if it has models; else build it from the family's folders."""
    from blockllm.zoo import Zoo

    if (zoo / "catalog.sqlite").exists() and Zoo(zoo).cards():
        return
    if family == FAMILY and all((FAMILY / name).exists() for name in MODELS):
        return build_zoo(zoo)
    folders = sorted(family.iterdir(), key=lambda f: ((f / "adapter_config.json").exists(), f))
    for folder in folders:
        if (folder / "adapter_config.json").exists():
            Zoo(zoo).add(folder.name, folder, base="base")
        elif (folder / "config.json").exists():
            Zoo(zoo).add(folder.name, folder)


def run(zoo: Path, options: Options, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Start a server on the zoo, soak it, stop it. Returns the report and what is wrong; `out` gets
    samples meanwhile and a picture behind it."""
    port = free_port()
    out.parent.mkdir(parents=True, exist_ok=True)
    keys = out.with_suffix(".keys")
    keys.write_text("".join(f"tenant-{i}:{key}\n" for i, key in enumerate(KEYS)))
    os.environ["BLOCKLLM_API_KEY_FILE"] = str(keys)
    server = start_server(zoo, port, stay=False)
    try:
        outcome = asyncio.run(soak(server, port, options, zoo, out))
        found = trends(outcome.samples)
        report, wrong = facts(outcome, found), judge(outcome, found)
        stop_server(server)
        if outcome.samples:
            draw(outcome.samples, report["agent_kills_at"], out.with_suffix(".png"))
        return report, wrong
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGKILL)


def main() -> None:
    """Read the command line, run, print, write, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=24)
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "demo-zoo")
    parser.add_argument("--family", type=Path, default=FAMILY, help="models if the zoo is empty")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "soak.json")
    parser.add_argument("--minutes-limit", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0: no pause")
    parser.add_argument("--kill-minutes", type=float, default=0.0, help="0: no agent is killed")
    parser.add_argument("--changes", action="store_true", help="the zoo changes meanwhile")
    parser.add_argument("--memory", default="66MiB", help="small, so that pages run out too")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    # one dtype and little memory, whatever the machine; the server reads its environment
    os.environ |= {"BLOCKLLM_DTYPE": "float32", "BLOCKLLM_MEMORY": given.memory}
    prepare(given.zoo, given.family)
    options = Options(
        given.requests,
        given.concurrency,
        given.seed,
        given.minutes_limit,
        given.rate,
        given.kill_minutes,
        given.changes,
    )
    report, wrong = run(given.zoo, options, given.out)
    given.out.write_text(json.dumps({**report, "wrong": wrong}, indent=2), encoding="utf-8")
    CONSOLE.print(show(report))
    for line in wrong:
        CONSOLE.print(f"wrong: {line}", style="red", markup=False)
    CONSOLE.print("all as it should be" if not wrong else f"{len(wrong)} things are wrong")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
