"""Prompts layer by layer against prompts in chunks, beside decoding, at equal work per turn.

    python -m tools.studies.measure_layered --zoo ZOO --model base --out out/layered

Answers are being decoded while prompts come. In both arms a turn may compute as many rows through
all layers as `--rows` says: `blocks` cuts a prompt into chunks, `layered` takes whole prompts
through a part of the layers. Both engines live in one process, pairs are interleaved, and tokens
have to be equal.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from blockllm.config import EngineSettings
from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tools.studies.drive import Arrival, Times, as_data, percentile, play, ratio_table, write_report

Batching = Literal["blocks", "layered"]
ARMS: tuple[Batching, Batching] = ("blocks", "layered")


class Seen(NamedTuple):
    """One run of one arm; seconds but for the last two."""

    first_token: float  # median over prompts that came beside decoding
    first_token_p95: float
    gap: float  # between tokens of answers being decoded: median
    gap_p99: float
    tokens_per_second: float
    hops: int


def arrivals(options: argparse.Namespace, vocab: int, pair: int) -> list[Arrival]:
    """Long answers from the start; then prompts, one after the other."""
    draws = np.random.default_rng(pair)

    def request(name: str, prompt: int, output: int) -> Request:
        ids = tuple(draws.integers(3, vocab, prompt).tolist())
        sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
        return Request(name, options.model, ids, sampling)

    found = [
        Arrival(0.0, request(f"answer-{i}", 16, options.answer)) for i in range(options.decoding)
    ]
    at = options.before
    for i in range(options.prompts):
        found.append(Arrival(at, request(f"prompt-{i}", options.prompt, 4)))
        at += float(draws.exponential(options.every))
    return found


def see(times: dict[str, Times], hops: int) -> Seen:
    """The figures of one run."""
    firsts = [own.first for name, own in times.items() if name.startswith("prompt")]
    gaps = [g for name, own in times.items() if name.startswith("answer") for g in own.gaps]
    end = max(own.seconds[-1] for name, own in times.items() if name.startswith("answer"))
    return Seen(
        statistics.median(firsts),
        percentile(firsts, 95),
        statistics.median(gaps),
        percentile(gaps, 99),
        sum(len(own.tokens) for own in times.values()) / end,
        hops,
    )


def compare(options: argparse.Namespace) -> dict[str, list[Seen]]:
    """All pairs, by arm; the first pair warms up and is dropped."""
    zoo = Zoo(options.zoo)
    engines = {}
    for batching in ARMS:
        settings = EngineSettings(
            memory=options.memory,
            batching=batching,
            max_rows=options.rows,
            max_sequences=min(options.rows, 64),
            max_turn_seconds=0.0,
            prefix_cache=False,
        )
        engines[batching] = Engine(zoo, [options.model], settings)
    vocab = zoo.chains([options.model])[options.model].vocab_size
    found: dict[str, list[Seen]] = {arm: [] for arm in ARMS}
    for pair in range(options.pairs + 1):
        tokens = {}
        for arm in ARMS if pair % 2 else reversed(ARMS):
            engine = engines[arm]
            before = sum(span.hops for span in engine.stats().spans)
            times = play(engine, arrivals(options, vocab, pair))
            hops = sum(span.hops for span in engine.stats().spans) - before
            tokens[arm] = {name: own.tokens for name, own in times.items()}
            if pair:
                found[arm].append(see(times, hops))
            engine.check_books()
        differing = [
            name for name, own in tokens["blocks"].items() if own != tokens["layered"][name]
        ]
        if differing:
            raise SystemExit(f"pair {pair}: the tokens of {', '.join(differing)} differ")
    return found


def parse_arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--model", default="base")
    parser.add_argument("--memory", default="3GiB")
    parser.add_argument("--rows", type=int, default=72, help="of a turn, through all layers")
    parser.add_argument("--decoding", type=int, default=8, help="answers that are being decoded")
    parser.add_argument("--answer", type=int, default=120, help="tokens of each")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=384, help="tokens of each")
    parser.add_argument("--before", type=float, default=1.0, help="seconds before the first prompt")
    parser.add_argument("--every", type=float, default=1.5, help="mean seconds between prompts")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser.parse_args(given)


def main() -> None:
    """See the module."""
    options = parse_arguments()
    found = compare(options)
    print(ratio_table(found))
    write_report(options, "layered.json", {"runs": as_data(found)})


if __name__ == "__main__":
    main()
