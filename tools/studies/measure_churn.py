"""Models are added, replaced and removed while others answer: lost requests, memory, longest gaps.

    python -m tools.studies.measure_churn --family out/many [--cycles 200 --out out/residency]

A guest is added under a new name, replaced by another model while it answers, and removed while it
answers, again and again: an adapter mostly, a fine-tune of the upper layers every tenth time. Each
of its answers has to be whole and to hold the tokens of the model that was served when the request
was sent, which another server has answered before. Meanwhile requests to the other models come at
times of their own; before it they come for a while without a guest, for comparison.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import uvloop
from matplotlib.figure import Figure
from msgspec.structs import replace

from blockllm.bench.client import Outcome, Target, ask
from blockllm.bench.machine import Memory
from blockllm.bench.metrics import gaps
from blockllm.bench.workload import Planned, Workload, plan
from tools.studies.drive import percentile, write_report
from tools.studies.make_many import BASES, Family, Model, Way
from tools.studies.measure_residency import Study, add_load_arguments, open_study, workload
from tools.studies.residency_servers import Admin, Blockllm, Running

ADMIN_KEY = "study"
GUEST = "guest"
WAYS: tuple[Way, ...] = ("lora", "upper")  # that the guests' models were made
RARE = 10  # every so many cycles the guest is a fine-tune
SENT_SECONDS = 0.1  # after which a request that was sent is in the server
ALLOWED = 1.2  # times the turn limit that a gap may last
MB = 1e6

Tokens = Mapping[str, list[int]]  # by model
Seconds = dict[str, list[float]]  # by operation


class Look(NamedTuple):
    """Memory of all processes after a cycle, in bytes, and seconds since the start."""

    cycle: int
    seconds: float
    pss: int
    rss: int


class Churn(NamedTuple):
    """Everything that was seen; `wrong`: answers of guests that are not those of their model."""

    quiet: list[Outcome]
    beside: list[Outcome]
    guests: list[Outcome]
    wrong: list[str]
    looks: list[Look]
    operations: Seconds


def guest_models(family: Family) -> list[Model]:
    """The last two adapters and fine-tunes of the last base; while guests come, nothing else is
    served from them."""
    base = f"{BASES[-1]}-base"
    ways = [[m for m in family.models if (m.base, m.way) == (base, way)] for way in WAYS]
    return [model for models in ways for model in models[-2:]]


def pair_of(models: Sequence[Model], cycle: int) -> tuple[Model, Model]:
    """Which comes first in a cycle, and which replaces it."""
    way = "upper" if cycle % RARE == RARE - 1 else "lora"
    first, second = [one for one in models if one.way == way]
    return (second, first) if cycle % 2 else (first, second)


class Guest:
    """One name under which models come and go."""

    def __init__(
        self, study: Study, url: str, session: aiohttp.ClientSession, expected: Tokens
    ) -> None:
        self._family, self._session, self._expected = study.family, session, expected
        self._admin, self._target = Admin(url, ADMIN_KEY), Target(url, GUEST, token_ids=True)
        self._prompts = prompts(study)
        self.outcomes: list[Outcome] = []
        self.wrong: list[str] = []
        self.seconds: Seconds = {"add": [], "replace": [], "remove": []}

    async def cycle(self, first: Model, second: Model) -> None:
        """Add the first, replace it by the second, remove that, each while the guest answers."""
        await self._timed("add", self._add, first)
        await self._while_answering(first, self._timed("replace", self._add, second))
        await self._answer(second)
        await self._while_answering(second, self._timed("remove", self._admin.remove, GUEST))

    def _add(self, model: Model) -> None:
        base = model.base if model.way == "lora" else None
        self._admin.add(GUEST, self._family.source(model), base)

    async def _timed(self, kind: str, act: Callable[..., None], *words: object) -> None:
        start = time.perf_counter()
        await asyncio.to_thread(act, *words)
        self.seconds[kind].append(time.perf_counter() - start)

    async def _while_answering(self, model: Model, act: Coroutine[Any, Any, None]) -> None:
        answering = asyncio.create_task(self._answer(model))
        await asyncio.sleep(SENT_SECONDS)
        await act
        await answering

    async def _answer(self, model: Model) -> None:
        now = time.perf_counter()
        outcome = await ask(self._session, self._prompts[model.name], self._target, "", now)
        self.outcomes.append(outcome)
        if outcome.error:
            self.wrong.append(f"{model.name}: {outcome.error}: {outcome.detail}")
        elif outcome.token_ids != self._expected[model.name]:
            self.wrong.append(f"{model.name}: {outcome.token_ids}")


def prompts(study: Study) -> dict[str, Planned]:
    """One request to each guest."""
    asked = replace(workload(study.family, study.options, 0), requests=1, concurrency=1)
    return {
        model.name: plan(replace(asked, models=(model.name,), output_length="24"))[0]
        for model in guest_models(study.family)
    }


async def expected_tokens(study: Study, url: str) -> Tokens:
    """The answers of the guests' models, served under their own names."""
    found = {}
    async with aiohttp.ClientSession() as session:
        for name, planned in prompts(study).items():
            target = Target(url, name, token_ids=True)
            outcome = await ask(session, planned, target, "", time.perf_counter())
            if outcome.error:
                raise SystemExit(f"{name}: {outcome.error}: {outcome.detail}")
            found[name] = outcome.token_ids
    return found


async def others(
    session: aiohttp.ClientSession, running: Running, asked: Workload, stop: asyncio.Event
) -> list[Outcome]:
    """Requests to the other models when they are due, until `stop`; then all their answers."""
    tasks: list[asyncio.Task[Outcome]] = []
    while not stop.is_set():
        began, asked = time.perf_counter(), replace(asked, seed=asked.seed + 1)
        for planned in plan(asked):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), began + planned.at - time.perf_counter())
            if stop.is_set():
                break
            target = running.targets[planned.model]
            tasks.append(asyncio.create_task(ask(session, planned, target, "", began)))
    return list(await asyncio.gather(*tasks))


async def churn(study: Study, running: Running, expected: Tokens) -> Churn:
    """A while without guests, then all cycles."""
    options, looks = study.options, list[Look]()
    names = running.process.models
    asked = workload(study.family, options, 1)
    asked = replace(
        asked, models=tuple(one for one in asked.models if one in names), rate=study.rate
    )
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    async with aiohttp.ClientSession(connector=connector) as session:
        guest = Guest(study, running.process.url, session, expected)
        stop = asyncio.Event()
        load = asyncio.create_task(others(session, running, asked, stop))
        await asyncio.sleep(options.quiet)
        stop.set()
        quiet = await load
        stop.clear()
        load = asyncio.create_task(others(session, running, asked, stop))
        start = time.perf_counter()
        for cycle in range(options.cycles):
            await guest.cycle(*pair_of(guest_models(study.family), cycle))
            seen: Memory = await asyncio.to_thread(running.memory)
            looks.append(Look(cycle, time.perf_counter() - start, seen.pss, seen.rss))
        stop.set()
        beside = await load
    return Churn(quiet, beside, guest.outcomes, guest.wrong, looks, guest.seconds)


def grown(looks: Sequence[Look]) -> float:
    """MB by which the median of the last fifth of the cycles exceeds that of the second fifth."""
    fifth = max(1, len(looks) // 5)
    second, last = looks[fifth : 2 * fifth] or looks, looks[-fifth:]
    return (_middle(last) - _middle(second)) / MB


def slope(looks: Sequence[Look]) -> float:
    """MB for 100 cycles, by least squares over the cycles behind the first fifth."""
    kept = looks[len(looks) // 5 :]
    if len(kept) < 2:
        return 0.0
    found = statistics.linear_regression([one.cycle for one in kept], [one.pss for one in kept])
    return 100 * found.slope / MB


def _middle(looks: Sequence[Look]) -> float:
    return statistics.median(one.pss for one in looks)


def table(seen: Churn, turn_seconds: float) -> str:
    """What was asked, lost, held in memory, and how long others waited."""
    lost = [one for one in (*seen.quiet, *seen.beside, *seen.guests) if one.error]
    rows = [
        ("cycles of add, replace, remove", f"{len(seen.looks)}"),
        ("requests to other models meanwhile", f"{len(seen.beside)}"),
        ("requests to guests, in flight while replaced or removed", f"{len(seen.guests)}"),
        ("requests lost", f"{len(lost)}"),
        ("answers of guests with other tokens than their model's", f"{len(seen.wrong)}"),
        ("memory after the first and the last cycle, MB", _ends(seen.looks)),
        ("memory, last fifth - second fifth of the cycles, MB", f"{grown(seen.looks):+.1f}"),
        ("memory, slope for 100 cycles, MB", f"{slope(seen.looks):+.2f}"),
        ("worst gap without guests, ms", _worst(seen.quiet)),
        (f"worst gap, ms (limit {1000 * ALLOWED * turn_seconds:.0f})", _worst(seen.beside)),
    ]
    for kind, seconds in seen.operations.items():
        middle, high = percentile(seconds, 50), percentile(seconds, 95)
        rows.append((f"{kind}, ms (p50, p95)", f"{1000 * middle:.0f}, {1000 * high:.0f}"))
    return "\n".join(["| what | seen |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _ends(looks: Sequence[Look]) -> str:
    return f"{looks[0].pss / MB:.0f}, {looks[-1].pss / MB:.0f}"


def _worst(outcomes: Sequence[Outcome]) -> str:
    longest = [gap for one in outcomes for gap in gaps(one)]
    return f"{1000 * max(longest):.0f} (p99 {1000 * percentile(longest, 99):.0f})"


def draw(looks: Sequence[Look], path: Path) -> None:
    """Memory of all processes over cycles."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    panel = figure.add_subplot()
    cycles = [look.cycle for look in looks]
    panel.plot(cycles, [look.pss / MB for look in looks], label="proportional set size")
    panel.plot(cycles, [look.rss / MB for look in looks], label="resident set size")
    panel.set(xlabel="cycles of add, replace, remove", ylabel="MB")
    panel.set_ylim(bottom=0)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def measure(study: Study) -> Churn:
    """Ask a server of all models what guests answer, then serve the others and let guests come."""
    options = study.options
    with Running(study.resident, options.logs / "guests.log") as running:
        expected = uvloop.run(expected_tokens(study, running.process.url))
    guests = {model.name for model in guest_models(study.family)}
    served = tuple(one.name for one in study.family.models if one.name not in guests)
    flags = (*study.resident.flags, "--admin-key", ADMIN_KEY)
    flags += ("--max-turn-seconds", str(options.turn_seconds))
    arm = Blockllm("churn", study.family, study.resident.memory, flags, served)
    with Running(arm, options.logs / "churn.log") as running:
        return uvloop.run(churn(study, running, expected))


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description="Models come and go while others answer.")
    add_load_arguments(parser)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--quiet", type=float, default=60.0, help="Seconds without guests.")
    parser.add_argument("--turn-seconds", type=float, default=0.5)
    options = parser.parse_args()
    study = open_study(options)
    if not study.rate:
        study.measure_rate()
    seen = measure(study)
    print(table(seen, options.turn_seconds))
    report = {
        "rate": study.rate,
        "lines": table(seen, options.turn_seconds).splitlines()[2:],
        "looks": [look._asdict() for look in seen.looks],
        "operations": seen.operations,
        "wrong": seen.wrong,
    }
    write_report(options, "churn.json", report)
    if options.out:
        draw(seen.looks, options.out / "churn.png")


if __name__ == "__main__":
    main()
