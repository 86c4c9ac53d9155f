"""A batch limit for every block against one limit for the whole turn, under skewed popularity.

    blockllm zoo profile --zoo ZOO
    python -m tools.studies.measure_block_limits --zoo ZOO --popularity zipf:1.2 --out out/limits

Arms: `turn` has one limit for the whole turn, by `max_turn_seconds`, and `turn:N` one of N rows
(`max_rows`); `auto` adds to `turn` what pays at each block, and a number one and the same limit of
every block (values of the setting `block_limits`). All engines live in one process, arms take
turns, and tokens have to be equal. Which models are popular is drawn anew in every round.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blockllm.bench.workload import Workload, plan
from blockllm.config import EngineSettings
from blockllm.core import Chain, Request, Sampling
from blockllm.engine import Engine
from blockllm.observability.stats import EngineStats, SpanStats
from blockllm.zoo import Zoo
from tools.studies.drive import Arrival, Times, as_data, percentile, play, ratio_table, write_report


class Figures(NamedTuple):
    """One run of one arm. Seconds: to first tokens, and between tokens."""

    tokens_per_second: float
    first_token: float  # median
    first_token_p95: float
    gap: float  # median
    gap_p99: float
    rows_per_hop: float  # over all hops
    rows_per_hop_hottest: float  # at the span with most rows
    turns: float


def arrivals(options: argparse.Namespace, chains: Sequence[Chain], seed: int) -> list[Arrival]:
    """One round of requests, which models draw by their popularity."""
    names = [chain.model for chain in chains]
    ranked = np.random.default_rng(seed).permutation(names).tolist()
    workload = Workload(
        models=tuple(ranked),
        requests=options.requests,
        rate=options.rate,
        popularity=options.popularity,
        prompt_length=options.prompt,
        output_length=options.output,
        token_range=f"3:{min(chain.vocab_size for chain in chains)}",
        seed=seed,
    )
    return [
        Arrival(
            planned.at,
            Request(
                id=str(planned.index),
                model=planned.model,
                prompt=tuple(map(int, planned.prompt)),
                sampling=Sampling(
                    max_tokens=planned.output_tokens, temperature=0.0, ignore_eos=True
                ),
            ),
        )
        for planned in plan(workload)
    ]


def see(times: dict[str, Times], due: dict[str, float], ran: EngineStats) -> Figures:
    """The figures of one run. `due`: when each request was sent; `ran`: what the run counted."""
    firsts = [own.first for own in times.values()]
    gaps = [gap for own in times.values() for gap in own.gaps]
    end = max(due[name] + own.seconds[-1] for name, own in times.items())
    hottest = max(ran.spans, key=lambda span: span.rows)
    return Figures(
        tokens_per_second=sum(len(own.tokens) for own in times.values()) / end,
        first_token=statistics.median(firsts),
        first_token_p95=percentile(firsts, 95),
        gap=statistics.median(gaps),
        gap_p99=percentile(gaps, 99),
        rows_per_hop=sum(span.rows for span in ran.spans) / sum(span.hops for span in ran.spans),
        rows_per_hop_hottest=hottest.rows / hottest.hops,
        turns=ran.turns,
    )


def counted(after: EngineStats, before: EngineStats) -> EngineStats:
    """Turns, and hops and rows of spans, between two snapshots."""
    pairs = zip(after.spans, before.spans, strict=True)
    spans = [SpanStats(a.name, a.models, a.hops - b.hops, a.rows - b.rows) for a, b in pairs]
    return EngineStats(turns=after.turns - before.turns, spans=tuple(spans))


def run(engine: Engine, sent: Sequence[Arrival]) -> tuple[Figures, dict[str, list[int]]]:
    """One round on one engine: its figures and the tokens of each request."""
    before = engine.stats()
    times = play(engine, sent)
    engine.check_books()
    due = {each.request.id: each.at for each in sent}
    tokens = {name: own.tokens for name, own in times.items()}
    return see(times, due, counted(engine.stats(), before)), tokens


def open_engines(options: argparse.Namespace) -> dict[str, Engine]:
    """An engine for each arm."""
    engines = {}
    for arm in options.arms.split(","):
        kind, _, rows = arm.partition(":")
        settings = EngineSettings(
            memory=options.memory,
            block_limits="off" if kind == "turn" else arm,
            max_rows=int(rows or 512),
            max_turn_seconds=options.turn_seconds,
            max_sequences=options.sequences,
            prefix_cache=False,
        )
        engines[arm] = Engine(Zoo(options.zoo), None, settings)
        if arm == "auto" and not engines[arm].parts.row_limits:
            raise SystemExit(f"auto: no profiles; run `blockllm zoo profile --zoo {options.zoo}`")
    return engines


def compare(options: argparse.Namespace, engines: dict[str, Engine]) -> dict[str, list[Figures]]:
    """All rounds, by arm; the first one warms up and is dropped."""
    found: dict[str, list[Figures]] = {arm: [] for arm in engines}
    states = next(iter(engines.values())).parts.states
    chains = [states[model].route.chain for model in sorted(states)]
    for number in range(options.rounds + 1):
        tokens = {}
        for arm in list(engines)[:: 1 if number % 2 else -1]:
            seen, tokens[arm] = run(engines[arm], arrivals(options, chains, number))
            if number:
                found[arm].append(seen)
        if any(own != next(iter(tokens.values())) for own in tokens.values()):
            raise SystemExit(f"round {number}: the tokens of the arms differ")
    return found


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument(
        "--arms", default="turn,turn:128,auto", help="see above; the first is the reference"
    )
    parser.add_argument("--popularity", default="zipf:1.2", help="of the models")
    parser.add_argument("--requests", type=int, default=96, help="of one round")
    parser.add_argument("--rate", type=float, default=8.0, help="requests in a second")
    parser.add_argument("--prompt", default="lognormal:96:0.8", help="tokens")
    parser.add_argument("--output", default="uniform:16:64", help="tokens")
    parser.add_argument("--turn-seconds", type=float, default=0.5, help="as max_turn_seconds")
    parser.add_argument("--sequences", type=int, default=64, help="as max_sequences")
    parser.add_argument("--memory", default="2GiB", help="of each engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder for limits.json")
    return parser.parse_args(given)


def main() -> None:
    """See the module."""
    options = parse_arguments()
    engines = open_engines(options)
    limits = {
        arm: {
            span.name: engine.parts.row_limits.get(span.index) for span in engine.parts.plan.spans
        }
        for arm, engine in engines.items()
    }
    found = compare(options, engines)
    print(ratio_table(found))
    write_report(options, "limits.json", {"limits": limits, "runs": as_data(found)})


if __name__ == "__main__":
    main()
