"""Faults at random moments under load: nothing is lost but what was in flight, and that is told.

A real server of tiny models, clients of three tenants that know the answers, and one fault after
another. Behind each: a right answer again, how long that took, then at rest: balanced books, no
descriptor, process or file more than before.

    python -m tools.campaigns.faults --faults 500
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tools.campaigns import makings
from tools.campaigns.faults.actions import FAULTS, KILLS_AGENT
from tools.campaigns.faults.load import BackgroundLoad, questions
from tools.campaigns.faults.system import System
from tools.soak.watch import read_metrics

CONSOLE = Console()
BACK_SECONDS = 30.0  # then the server counts as gone
REST_SECONDS = 20.0
CLIENTS = 6
SPARE = {"descriptors": 12, "processes": 0, "zombies": 0, "temporary files": 0}


class Seen(NamedTuple):
    """One fault: what, and the seconds from when it was undone to the next right answer."""

    fault: str
    seconds: float


def build(scratch: Path) -> Path:
    """A base with a tokenizer, an adapter, and a full model that shares a layer."""
    from tests.makers import make_checkpoint

    zoo, base = makings.zoo(scratch), makings.base(scratch)
    upper = {"num_hidden_layers": 3, "attention_bias": True, "mlp_bias": True, "tokenizer": True}
    make_checkpoint(scratch / "upper", seed=2, copy_layers_from=base, copied_layers=(0,), **upper)
    zoo.add("upper", scratch / "upper")
    return scratch / "zoo"


async def campaign(
    faults: int, seed: int, names: list[str], folder: Path, minutes: float = 1e6
) -> dict[str, Any]:
    """So many faults, drawn by the seed, or what fits into the minutes; the report."""
    system = System(folder, await asyncio.to_thread(build, folder))
    load = BackgroundLoad(system.port, questions(["base", "lora", "upper"]), seed)
    chosen, seen, wrong = random.Random(seed), list[Seen](), list[str]()
    start = time.monotonic()
    try:
        await load.learn()
        workers = [asyncio.create_task(load.work()) for _ in range(CLIENTS)]
        before = await asyncio.to_thread(system.held)
        for number in range(faults):
            name = names[number % len(names)] if number < len(names) else chosen.choice(names)
            if time.monotonic() - start > 60 * minutes:
                break
            load.gate.set()
            await asyncio.sleep(chosen.uniform(0.1, 1.0))
            seconds, faulty = await _suffer(system, load, name)
            seen.append(Seen(name, seconds))
            load.gate.clear()
            faulty += await _rest(system, load, before)
            wrong += [f"fault {number}, {name}: {what}" for what in faulty]
            CONSOLE.print(f"{number} {name}: {seconds:.2f} s", *faulty, markup=False)
            if system.process.poll() is not None:
                raise SystemExit(f"the server has ended: {system.said()[-2000:]}")
        for worker in workers:
            worker.cancel()
        status = await asyncio.to_thread(system.end)
        wrong += [f"the server ended with status {status}"] if status else []
    finally:
        await load.close()
        if system.process.poll() is None:
            system.process.kill()
    wrong += load.wrong
    return report(seen, load.counts, wrong, seed, time.monotonic() - start)


async def _suffer(system: System, load: BackgroundLoad, name: str) -> tuple[float, list[str]]:
    """Do it; seconds until a right answer again, and what should not be."""
    agent, faulty = system.agent(), list[str]()
    try:
        await FAULTS[name](system, load)
    except AssertionError as error:
        faulty.append(str(error))
    start = time.monotonic()
    while True:
        is_new = name not in KILLS_AGENT or system.agent() not in (agent, None)
        if is_new and await load.probe():
            return time.monotonic() - start, faulty
        if time.monotonic() - start > BACK_SECONDS:
            return BACK_SECONDS, [*faulty, f"no right answer within {BACK_SECONDS:g} s"]
        await asyncio.sleep(0.02)


async def _rest(system: System, load: BackgroundLoad, before: dict[str, int]) -> list[str]:
    """Without load: everything ends, the books balance, nothing is held that was not before."""
    deadline, faulty = time.monotonic() + REST_SECONDS, ["not looked at"]
    while faulty and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
        faulty = [f"{load.in_flight} requests have no end"] if load.in_flight else []
        try:
            metrics = read_metrics(await load.metrics())
        except Exception as error:
            faulty.append(f"no metrics: {error}")
            continue
        if not metrics.is_idle:
            faulty.append(f"not at rest: {metrics}")
        held = await asyncio.to_thread(system.held)
        for name, count in held.items():
            if count > before[name] + SPARE[name]:
                faulty.append(f"{name}: {count}, {before[name]} before")
            if name == "processes" and count < before[name]:
                faulty.append(f"processes: {count}, {before[name]} before")
    return faulty


def report(
    seen: list[Seen], counts: Counter[str], wrong: list[str], seed: int, seconds: float
) -> dict[str, Any]:
    """Everything as plain data."""
    by_fault: dict[str, list[float]] = defaultdict(list)
    for fault, back in seen:
        by_fault[fault].append(back)
    kinds = {
        fault: {
            "faults": len(times),
            "median": round(statistics.median(times), 2),
            "p95": round(sorted(times)[int(0.95 * (len(times) - 1))], 2),
            "most": round(max(times), 2),
        }
        for fault, times in sorted(by_fault.items())
    }
    return {
        "faults": len(seen),
        "seed": seed,
        "seconds": round(seconds),
        "answers": dict(counts.most_common()),
        "seconds until a right answer": kinds,
        "every": [list(each) for each in seen],
        "wrong": wrong,
    }


def show(found: dict[str, Any]) -> Table:
    """Recovery by kind."""
    table = Table("fault", "times", "median s", "p95 s", "most s")
    for fault, row in found["seconds until a right answer"].items():
        table.add_row(fault, *(str(value) for value in row.values()))
    return table


def page(found: dict[str, Any]) -> str:
    """The same as a page."""
    kinds = found["seconds until a right answer"]
    rows = [
        f"| {fault} | {row['faults']} | {row['median']} | {row['p95']} | {row['most']} |"
        for fault, row in kinds.items()
    ]
    answers = [f"| {outcome} | {count:,} |" for outcome, count in found["answers"].items()]
    return "\n".join(
        [
            "# Faults: results",
            "",
            f"{found['faults']} faults, seed {found['seed']}, {found['seconds']} s, "
            f"{len(found['wrong'])} things wrong. Seconds run",
            "from when the fault is undone to the next right answer.",
            "",
            "| fault | times | median s | p95 s | most s |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "| what clients got | times |",
            "|---|---|",
            *answers,
            "",
            "![every fault](faults.png)",
            "",
        ]
    )


def draw(found: dict[str, Any], path: Path) -> None:
    """Every fault as a dot, by kind."""
    import matplotlib.pyplot as plt

    kinds = list(found["seconds until a right answer"])
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(kinds) + 1.2))
    for fault, seconds in found["every"]:
        axes.plot(seconds, kinds.index(fault), "o", color="tab:blue", alpha=0.3, markersize=4)
    axes.axvline(5, color="tab:red", linestyle=":")
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("seconds from the fault's end to the next right answer; dotted: the limit")
    axes.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Exit status 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=500)
    parser.add_argument("--minutes", type=float, default=1e6, help="ends earlier")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=sorted(FAULTS), default=list(FAULTS))
    parser.add_argument("--out", type=Path, help="a folder for faults.json, .md and .png")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        asked = (given.faults, given.seed, given.only, Path(scratch), given.minutes)
        found = asyncio.run(campaign(*asked))
    CONSOLE.print(show(found))
    CONSOLE.print(found["answers"])
    for line in found["wrong"]:
        CONSOLE.print(f"wrong: {line}", style="red", markup=False)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "faults.json").write_text(json.dumps(found, indent=1) + "\n")
        (given.out / "faults.md").write_text(page(found), encoding="utf-8")
        draw(found, given.out / "faults.png")
    raise SystemExit(bool(found["wrong"]))


if __name__ == "__main__":
    main()
