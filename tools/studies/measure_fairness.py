"""What light tenants feel of a heavy one, and how evenly tenants are served that always ask.

    python -m tools.studies.measure_fairness --zoo ZOO --model base --out out/fairness

Light tenants ask for short answers to short prompts. The heavy one asks ten times as often as each
of them, with long prompts: more than the machine can serve. Each arm runs with and without it, in
turns, on one engine and one load; tokens have to be equal. `order` gives all requests to one
tenant, so they are served in order of arrival; `fair` serves by counters; `quota` gives the heavy
tenant a quota of rows beside. Then tenants of several weights and shapes have more waiting than is
served: Jain's index of what each was served, divided by its weight.

With `--turn-cost` times are virtual: a turn takes so many milliseconds, and more for each row,
however busy the machine is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from blockllm.bench.metrics import jain
from blockllm.config import EngineSettings, TenantSettings
from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tools.studies.drive import (
    Arrival,
    Clock,
    Times,
    TurnClock,
    WallClock,
    percentile,
    play,
    write_report,
)
from tools.studies.measure_sharing import spread

ARMS = ("order", "fair", "quota")
HEAVY = 10  # times the requests of a light tenant


class Seen(NamedTuple):
    """What light tenants felt in one run, in seconds, and tokens per second of the heavy one."""

    first_p50: float
    first_p95: float
    whole_p50: float
    whole_p95: float
    heavy_tokens: float


class Backlogged(NamedTuple):
    """A tenant that always has requests waiting."""

    weight: float
    prompt: int
    answer: int


BACKLOG = (
    Backlogged(4.0, 32, 64), Backlogged(2.0, 64, 32), Backlogged(1.0, 256, 32),
    Backlogged(1.0, 512, 16),
)  # fmt: skip


class Draws:
    """Requests with random prompts, by a seed."""

    def __init__(self, model: str, vocab: int, seed: int) -> None:
        self._model, self._vocab = model, vocab
        self.random = np.random.default_rng(seed)

    def request(self, name: str, tenant: str, prompt: int, answer: int) -> Request:
        """A request to be answered greedily, to its length."""
        ids = tuple(self.random.integers(3, self._vocab, prompt).tolist())
        sampling = Sampling(max_tokens=answer, temperature=0.0, ignore_eos=True)
        return Request(name, self._model, ids, sampling, tenant)

    def arrivals(self, rate: float, seconds: float) -> Iterator[float]:
        """Times of a Poisson process."""
        at = self.random.exponential(1 / rate)
        while at < seconds:
            yield float(at)
            at += self.random.exponential(1 / rate)


class Study:
    """One engine; every run has tenants of its own, so none begins with what it was served."""

    def __init__(self, options: argparse.Namespace) -> None:
        zoo = Zoo(options.zoo)
        chain = zoo.chains([options.model])[options.model]
        self._options, self._vocab, self._runs = options, chain.vocab_size, 0
        runs = range(1, 1 + 2 * len(ARMS) * (options.pairs + 1) + 2 * options.pairs)
        quota = TenantSettings(max_rows=options.quota)
        tenants = {f"quota-{run}": quota for run in runs}
        for i, each in enumerate(BACKLOG):
            weight = TenantSettings(weight=each.weight)
            tenants |= {f"backlog-{i}-{run}": weight for run in runs}
        settings = EngineSettings(
            memory=options.memory,
            max_sequences=options.sequences,
            max_rows=options.rows,
            max_turn_seconds=0.0 if options.turn_cost else options.turn_seconds,
            max_waiting=100_000,
            prefix_cache=False,
            tenants=tenants,
        )
        self.engine = Engine(zoo, [options.model], settings)

    def clock(self) -> Clock:
        """Real time, or virtual time where turns have a given cost."""
        if not self._options.turn_cost:
            return WallClock()
        turn, row = (float(number) / 1000 for number in self._options.turn_cost.split(","))
        return TurnClock(self.engine, turn, row)

    def load(self, arm: str, seed: int, is_heavy_there: bool) -> list[Arrival]:
        """The same requests for every arm, but for the names of their tenants."""
        given, draws = self._options, Draws(self._options.model, self._vocab, seed)
        found, self._runs = [], self._runs + 1
        for tenant in range(given.lights):
            for i, at in enumerate(draws.arrivals(given.rate, given.seconds)):
                name = "all" if arm == "order" else f"light-{tenant}-{self._runs}"
                one = draws.request(f"light-{tenant}-{i}", name, given.prompt, given.answer)
                found.append(Arrival(at, one))
        name = {"order": "all", "fair": f"heavy-{self._runs}", "quota": f"quota-{self._runs}"}[arm]
        for i, at in enumerate(draws.arrivals(HEAVY * given.rate, given.seconds)):
            one = draws.request(f"heavy-{i}", name, given.heavy_prompt, given.answer)
            if is_heavy_there:
                found.append(Arrival(at, one))
        return found

    def run(self, arm: str, seed: int, is_heavy_there: bool) -> tuple[Seen, dict[str, list[int]]]:
        """One run: what light tenants felt, and all tokens."""
        sent = self.load(arm, seed, is_heavy_there)
        heavy = {each.request.id for each in sent if each.request.id.startswith("heavy")}
        clock = self.clock()
        start = clock.now()
        times = play(self.engine, sent, heavy, clock)
        seconds = clock.now() - start
        self.engine.check_books()
        return see(times, heavy, seconds), {name: own.tokens for name, own in times.items()}

    def backlog(self, arm: str, seed: int) -> dict[str, Any]:
        """Tenants that always have requests waiting: what each was served, and the index."""
        draws, sizes, self._runs = Draws(self._options.model, self._vocab, seed), {}, self._runs + 1
        for turn in range(self._options.backlog):
            for i, (_, prompt, answer) in enumerate(BACKLOG):
                tenant = "all" if arm == "order" else f"backlog-{i}-{self._runs}"
                one = draws.request(f"{i}-{turn}", tenant, prompt, answer)
                sizes[one.id] = prompt
                self.engine.submit(one)
        served, done = [0.0] * len(BACKLOG), [0] * len(BACKLOG)
        clock = self.clock()
        end = clock.now() + self._options.seconds
        while clock.now() < end:
            events = self.engine.step()
            clock.turned(self.engine)
            for event in events:
                tenant = int(event.request.partition("-")[0])
                served[tenant] += 2 + sizes.pop(event.request, 0)  # as counters count
                done[tenant] += event.finish is not None
        if max(done) + self._options.sequences >= self._options.backlog:
            raise SystemExit("a tenant had nothing waiting: raise --backlog")
        for turn in range(self._options.backlog):
            for i in range(len(BACKLOG)):
                self.engine.cancel(f"{i}-{turn}")
        self.engine.check_books()
        by_weight = [tokens / each.weight for tokens, each in zip(served, BACKLOG, strict=True)]
        return {"served": served, "served_by_weight": by_weight, "jain": jain(by_weight)}


def see(times: dict[str, Times], heavy: set[str], seconds: float) -> Seen:
    """The figures of one run."""
    lights = [own for name, own in times.items() if name not in heavy]
    firsts, wholes = [own.first for own in lights], [own.seconds[-1] for own in lights]
    tokens = sum(len(times[name].tokens) for name in heavy)
    middle, high = percentile(firsts, 50), percentile(firsts, 95)
    return Seen(middle, high, percentile(wholes, 50), percentile(wholes, 95), tokens / seconds)


def compare(study: Study, pairs: int) -> dict[str, Any]:
    """All rounds; the first warms up and is dropped."""
    felt: dict[str, dict[str, list[Any]]] = {arm: {"without": [], "with": []} for arm in ARMS}
    for pair in range(pairs + 1):
        tokens: dict[str, list[int]] = {}
        for arm in ARMS if pair % 2 else reversed(ARMS):
            for case in ("without", "with") if pair % 2 else ("with", "without"):
                seen, found = study.run(arm, pair, case == "with")
                if pair:
                    felt[arm][case].append(seen._asdict())
                for name, own in found.items():  # of the heavy tenant, some answers are cut off
                    before = tokens.setdefault(name, own)
                    shorter = min(len(own), len(before))
                    if own[:shorter] != before[:shorter]:
                        raise SystemExit(f"round {pair}, {arm}: the tokens of {name} differ")
    backlog: dict[str, list[Any]] = {"order": [], "fair": []}
    for pair in range(pairs):
        for arm, runs in backlog.items():
            runs.append(study.backlog(arm, pair))
    return {"felt": felt, "backlog": backlog}


def table(found: dict[str, Any]) -> str:
    """What light tenants felt with the heavy one over without it, and Jain's index."""
    names = ("first_p50", "first_p95", "whole_p50", "whole_p95")
    lines = ["| light tenants, with the heavy one / without | order | fair | quota |"]
    lines.append("|---|---|---|---|")
    for name in names:
        cells = []
        for runs in found["felt"].values():
            pairs = zip(runs["with"], runs["without"], strict=True)
            cells.append(spread([after[name] / before[name] for after, before in pairs]))
        lines.append(f"| {name.replace('_', ' ')} | {' | '.join(cells)} |")
    served = [[run["heavy_tokens"] for run in runs["with"]] for runs in found["felt"].values()]
    lines.append(f"| tokens/s of the heavy one | {' | '.join(map(spread, served))} |")
    backlog = [spread([run["jain"] for run in runs]) for runs in found["backlog"].values()]
    lines.append(f"| Jain's index of backlogged tenants | {' | '.join(backlog)} | |")
    return "\n".join(lines)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--model", default="base")
    parser.add_argument("--memory", default="2GiB")
    parser.add_argument("--lights", type=int, default=4, help="light tenants")
    parser.add_argument("--rate", type=float, default=0.1, help="requests/s of each of them")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of theirs")
    parser.add_argument("--answer", type=int, default=32, help="tokens of all answers")
    parser.add_argument("--heavy-prompt", type=int, default=512)
    parser.add_argument("--quota", type=int, default=8, help="rows of the heavy tenant in a turn")
    parser.add_argument("--rows", type=int, default=128, help="of a turn")
    parser.add_argument("--sequences", type=int, default=32, help="that run at once")
    parser.add_argument("--turn-seconds", type=float, default=0.05, help="wanted length of turns")
    parser.add_argument("--turn-cost", default="", help="virtual ms: of a turn, of each row")
    parser.add_argument("--backlog", type=int, default=400, help="requests of each tenant")
    parser.add_argument("--seconds", type=float, default=60.0, help="of one run")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = compare(Study(options), options.pairs)
    print(table(found))
    write_report(options, "fairness.json", found)


if __name__ == "__main__":
    main()
