"""Two lanes against one, under a load whose prompts and answers shift.

    python -m tools.studies.measure_lanes --zoo ZOO --model base --out out/lanes

Requests come at random moments, in phases: long prompts with short answers, then short prompts with
long answers, then both. Arms: `blocks` (prompts in chunks beside decoding, on all cores) and
`lanes` (prompts and answers beside each other, each on its share of the cores). Both engines live
in one process; for every rate the arms play the same requests in turn. A request keeps its limits
if its first token came within --first seconds and its mean gap is at most --gap. Tokens have to be
equal. The rate of an arm is the highest at which so many requests keep their limits as --share
says. Where a lane gets another share than its batch before had, the time until its batch begins is
the pause of that change. Pages of a sequence that goes from lane to lane are compared: one that is
another than before would have been copied, or computed again after a preemption.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from blockllm.config import EngineSettings
from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.engine.batch.turn import Turn
from blockllm.engine.lanes import Done
from blockllm.engine.sequence.sequence import Sequence
from blockllm.zoo import Zoo
from tools.studies.drive import Arrival, Times, as_data, percentile, play, write_report

ARMS = ("blocks", "lanes")
# tokens of prompt and answer of each phase: two kinds of requests in turn
PHASES = (((384, 8), (256, 16)), ((16, 96), (32, 64)), ((384, 8), (16, 96)))


class Seen(NamedTuple):
    """One run of one arm at one rate; seconds."""

    rate: float  # requests a second
    kept: float  # share of requests that kept their limits
    first_token: float  # median
    first_token_p95: float
    gap: float
    gap_p99: float
    seconds: float


def arrivals(options: argparse.Namespace, vocab: int, rate: float, seed: int) -> list[Arrival]:
    """Random moments, phase after phase."""
    draws = np.random.default_rng(seed)
    found, at = [], 0.0
    for phase, kinds in enumerate(PHASES):
        for i in range(options.requests):
            at += float(draws.exponential(1 / rate))
            prompt, output = kinds[i % len(kinds)]
            ids = tuple(draws.integers(3, vocab, prompt).tolist())
            sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
            name = f"{phase}-{i}"
            found.append(Arrival(at, Request(name, options.model, ids, sampling)))
    return found


def keeps(own: Times, options: argparse.Namespace) -> bool:
    """Whether a request kept its limits."""
    return own.first <= options.first and statistics.fmean(own.gaps) <= options.gap


def see(times: dict[str, Times], rate: float, options: argparse.Namespace) -> Seen:
    """The figures of one run."""
    firsts = [own.first for own in times.values()]
    gaps = [gap for own in times.values() for gap in own.gaps]
    return Seen(
        rate,
        statistics.fmean(keeps(own, options) for own in times.values()),
        statistics.median(firsts),
        percentile(firsts, 95),
        statistics.median(gaps),
        percentile(gaps, 99),
        max(own.seconds[-1] for own in times.values()),
    )


def make_engine(zoo: Zoo, options: argparse.Namespace, arm: str) -> Engine:
    """An engine of one arm."""
    settings: Any = {"batching": arm, "memory": options.memory, "threads": options.threads}
    return Engine(zoo, [options.model], EngineSettings(prefix_cache=False, **settings))


class Watch:
    """What happens where a batch starts: pauses of changed shares, and pages that changed."""

    def __init__(self, engine: Engine) -> None:
        self.pauses: list[float] = []  # seconds between a start with another share and computing
        self.handed_over = 0  # sequences that another lane computed the last rows of
        self.copied = 0  # bytes of pages of theirs that are not the pages they were
        self._page_bytes = [cache.tensor[0].nbytes for cache in engine.parts.caches]
        self._seen: dict[Sequence, tuple[int, list[list[int]]]] = {}  # lane, pages by block
        for number, lane in enumerate(engine._lanes):
            self._watch(number, lane)

    def _watch(self, number: int, lane: Any) -> None:
        real, run, before = lane.start, lane._runner.run, [0]

        def start(turn: Turn, threads: int) -> None:
            self._look(number, turn)
            changed, asked = threads != before[0] > 0, time.perf_counter()
            before[0] = threads

            def begin(turn: Turn, threads: int) -> Done:
                if changed:
                    self.pauses.append(time.perf_counter() - asked)
                done: Done = run(turn, threads)
                return done

            lane._runner.run = begin
            real(turn, threads)

        lane.start = start

    def _look(self, lane: int, turn: Turn) -> None:
        for sequence in turn.sequences:
            assert sequence.kv is not None
            pages = [[int(n) for g in groups for n in g.pages] for groups in sequence.kv.groups]
            known = self._seen.get(sequence)
            if known is not None and known[0] != lane:
                self.handed_over += 1
                for old, new in zip(known[1], pages, strict=True):
                    changed = sum(a != b for a, b in zip(old, new, strict=False))
                    self.copied += changed * self._page_bytes[sequence.pool]
            self._seen[sequence] = lane, pages


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """All rates and pairs, by arm; a first run of each arm warms up and is dropped."""
    zoo = Zoo(options.zoo)
    engines = {arm: make_engine(zoo, options, arm) for arm in ARMS}
    watch = Watch(engines["lanes"])
    vocab = zoo.chains([options.model])[options.model].vocab_size
    for arm in ARMS:
        play(engines[arm], arrivals(options, vocab, max(options.rates), 0))
    found: dict[str, list[Seen]] = {arm: [] for arm in ARMS}
    for rate in options.rates:
        for pair in range(options.pairs):
            tokens = {}
            for arm in ARMS if pair % 2 else reversed(ARMS):
                times = play(engines[arm], arrivals(options, vocab, rate, 1 + pair))
                tokens[arm] = {name: own.tokens for name, own in times.items()}
                found[arm].append(see(times, rate, options))
                engines[arm].check_books()
            if tokens["blocks"] != tokens["lanes"]:
                raise SystemExit(f"rate {rate}: the tokens of the arms differ")
    return {
        "runs": as_data(found),
        "share_changes": len(watch.pauses),
        "pause_p99_seconds": percentile(watch.pauses, 99) if watch.pauses else 0.0,
        "handed_over": watch.handed_over,
        "kv_bytes_copied": watch.copied,
    }


def table(report: dict[str, Any]) -> str:
    """Medians of pairs, by rate and arm."""
    lines = [
        "| requests/s | arm | within limits | first token, s | p95 | gap, ms | p99 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for rate in sorted({run["rate"] for run in report["runs"]["blocks"]}):
        for arm in ARMS:
            runs = [run for run in report["runs"][arm] if run["rate"] == rate]
            middle = {k: statistics.median(run[k] for run in runs) for k in runs[0]}
            lines.append(
                f"| {rate:g} | {arm} | {middle['kept']:.0%} | {middle['first_token']:.2f} "
                f"| {middle['first_token_p95']:.2f} | {1e3 * middle['gap']:.1f} "
                f"| {1e3 * middle['gap_p99']:.0f} |"
            )
    return "\n".join(lines)


def parse_arguments(given: Iterable[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--model", default="base")
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0])
    parser.add_argument("--requests", type=int, default=12, help="of each phase")
    parser.add_argument("--first", type=float, default=2.0, help="seconds to the first token")
    parser.add_argument("--gap", type=float, default=0.05, help="mean seconds between tokens")
    parser.add_argument("--share", type=float, default=0.9)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(None if given is None else list(given))


def main() -> None:
    """See the module."""
    options = parse_arguments()
    report = compare(options)
    print(table(report))
    for arm in ARMS:
        good = [
            rate
            for rate in options.rates
            if statistics.median(r["kept"] for r in report["runs"][arm] if r["rate"] == rate)
            >= options.share
        ]
        print(f"{arm}: {max(good, default=0):g} requests/s with {options.share:.0%} within limits")
    print(
        f"{report['share_changes']} changes of shares, pause at p99 "
        f"{1e3 * report['pause_p99_seconds']:.2f} ms; {report['handed_over']} sequences went from "
        f"lane to lane, {report['kv_bytes_copied']} bytes of KV were copied"
    )
    write_report(options, "lanes.json", report)


if __name__ == "__main__":
    main()
