"""Many models on one engine: memory against unique bytes, a mixed batch against one by one.

    python -m tools.studies.measure_sharing --zoo DIR [--requests 16 --prompt 128]
        [--output 32 --pairs 5]

Every request goes to another model. The arms are interleaved in one process and must give equal
tokens; the prefix index is off, so that neither profits from the other. Exit status 1 if memory
exceeds unique weight bytes + KV pool + 600 MB, or tokens differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from blockllm.config import EngineSettings
from blockllm.core import Chain, Request, Sampling
from blockllm.engine import Engine
from blockllm.observability.stats import EngineStats
from blockllm.zoo import Zoo

ALLOWANCE = 600_000_000  # bytes for the interpreter, the libraries and activations
MB = 1e6
Tokens = dict[str, list[int]]  # by request


class Memory(NamedTuple):
    """Bytes of this process that lie in memory: in all, of mapped files, of its own."""

    VmRSS: int
    RssFile: int
    RssAnon: int


class SpanUse(NamedTuple):
    """One span's hops and rows over the measured runs of one arm."""

    span: str
    models: int
    hops: int
    rows: int


def resident() -> Memory:
    """Of this process, from /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return Memory(*(int(found[field][0]) * 1024 for field in Memory._fields))


def make_request(name: str, model: str, prompt: list[int], output: int) -> Request:
    """A greedy request that runs to its length."""
    sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
    return Request(name, model, tuple(prompt), sampling)


def random_prompt(seed: int, length: int, vocab: int) -> list[int]:
    """Token ids above the special ones."""
    ids: list[int] = np.random.default_rng(seed).integers(3, vocab, length).tolist()
    return ids


def drive(engine: Engine, groups: Iterable[list[Request]]) -> tuple[Tokens, float]:
    """Run the groups one after another, the requests of a group together; tokens and seconds."""
    tokens: Tokens = {}
    start = time.perf_counter()
    for group in groups:
        for request in group:
            engine.submit(request)
        while engine.has_work:
            for event in engine.step():
                assert event.error is None, event.error
                if event.token is not None:
                    tokens.setdefault(event.request, []).append(event.token)
    return tokens, time.perf_counter() - start


class Comparison:
    """Pairs of runs of both arms in one engine."""

    def __init__(self, engine: Engine, models: list[str], prompt: int, output: int) -> None:
        self.mixed: list[float] = []  # output tokens/s
        self.in_turn: list[float] = []
        self.differing = 0  # requests whose tokens differ between the arms
        self.use: dict[str, tuple[int, int]] = {}  # hops and rows of the mixed arm, by span
        self.hops_in_turn = 0
        self._engine, self._models = engine, models
        self._lengths = prompt, output

    def run(self, pairs: int, vocab: int) -> None:
        """The first pair warms up and is dropped."""
        prompt, output = self._lengths
        for pair in range(pairs + 1):
            requests = [
                make_request(
                    f"{pair}-{i}", model, random_prompt(97 * pair + i, prompt, vocab), output
                )
                for i, model in enumerate(self._models)
            ]
            before = self._engine.stats()
            together, fast = drive(self._engine, [requests])
            between = self._engine.stats()
            alone, slow = drive(self._engine, [[request] for request in requests])
            self.differing += sum(together[r.id] != alone[r.id] for r in requests)
            if pair:
                self._note(before, between, self._engine.stats())
                self.mixed.append(len(requests) * output / fast)
                self.in_turn.append(len(requests) * output / slow)
        self._engine.check_books()

    def _note(self, before: EngineStats, between: EngineStats, after: EngineStats) -> None:
        for old, new, last in zip(before.spans, between.spans, after.spans, strict=True):
            hops, rows = self.use.get(new.name, (0, 0))
            self.use[new.name] = (hops + new.hops - old.hops, rows + new.rows - old.rows)
            self.hops_in_turn += last.hops - new.hops

    def facts(self) -> dict[str, Any]:
        """Speeds, ratios and counters as plain data."""
        pairs = zip(self.mixed, self.in_turn, strict=True)
        return {
            "mixed_tokens_per_second": self.mixed,
            "in_turn_tokens_per_second": self.in_turn,
            "ratios": [fast / slow for fast, slow in pairs],
            "requests_that_differ": self.differing,
            "hops_in_turn": self.hops_in_turn,
        }


def choose_models(chains: dict[str, Chain]) -> list[str]:
    """Fine-tunes first, bases of adapters last."""
    bases = {chain.parent for chain in chains.values()}
    tuned = [name for name in chains if name not in bases]
    return [*tuned, *(name for name in chains if name in bases)]


def measure(zoo: Zoo, settings: EngineSettings, options: argparse.Namespace) -> dict[str, Any]:
    """Load all models, compare the arms, weigh the process."""
    bare = resident()
    engine = Engine(zoo, None, settings)
    loaded = resident()
    chains = zoo.chains()
    models = choose_models(chains)[: options.requests]
    vocab = min(chain.vocab_size for chain in chains.values())
    comparison = Comparison(engine, models, options.prompt, options.output)
    comparison.run(options.pairs, vocab)
    stats, after = engine.stats(), resident()
    limit = stats.weight_bytes + stats.kv_bytes + ALLOWANCE
    return {
        "models_loaded": len(chains),
        "models_asked": models,
        "settings": {"prompt": options.prompt, "output": options.output, "pairs": options.pairs},
        "weight_bytes": stats.weight_bytes,
        "weight_bytes_unshared": stats.weight_bytes_unshared,
        "kv_bytes": stats.kv_bytes,
        "before_load": bare._asdict(),
        "after_load": loaded._asdict(),
        "after_run": after._asdict(),
        "memory_limit": limit,
        "memory_fits": max(loaded.VmRSS, after.VmRSS) <= limit,
        **comparison.facts(),
        "spans": [
            SpanUse(span.name, len(span.models), *comparison.use[span.name])._asdict()
            for span in stats.spans
        ],
    }


def spread(values: list[float], digits: int = 2) -> str:
    """Median, least and largest."""
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def markdown(seen: dict[str, Any]) -> str:
    """The table of the documentation."""
    weights, unshared = seen["weight_bytes"] / MB, seen["weight_bytes_unshared"] / MB
    loaded, after = Memory(**seen["after_load"]), Memory(**seen["after_run"])
    verdict = "within" if seen["memory_fits"] else "ABOVE"
    rows = [
        ("models on one engine", f"{seen['models_loaded']}"),
        ("weights, each block once", f"{weights:,.0f} MB"),
        ("weights, a copy per model", f"{unshared:,.0f} MB"),
        ("KV pool", f"{seen['kv_bytes'] / MB:,.0f} MB"),
        ("resident after load", _memory(loaded)),
        ("resident after the run", _memory(after)),
        ("limit: weights + KV pool + 600 MB", f"{seen['memory_limit'] / MB:,.0f} MB: {verdict}"),
        (
            f"{len(seen['models_asked'])} requests, {len(set(seen['models_asked']))} models, mixed",
            f"{spread(seen['mixed_tokens_per_second'], 1)} tokens/s",
        ),
        ("the same, model by model", f"{spread(seen['in_turn_tokens_per_second'], 1)} tokens/s"),
        ("ratio of interleaved pairs", f"{spread(seen['ratios'])}"),
        ("requests whose tokens differ between the arms", f"{seen['requests_that_differ']}"),
        ("hops, mixed", f"{sum(span['hops'] for span in seen['spans'])}"),
        ("hops, model by model", f"{seen['hops_in_turn']}"),
    ]
    rows += [
        (f"rows per hop, {name}", f"{rows / max(hops, 1):.1f}")
        for name, rows, hops in _by_riders(seen["spans"])
    ]
    return "\n".join(["| what | seen |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _memory(memory: Memory) -> str:
    file, own = memory.RssFile / MB, memory.RssAnon / MB
    return f"{memory.VmRSS / MB:,.0f} MB (mapped files {file:,.0f}, own {own:,.0f})"


def _by_riders(spans: list[dict[str, Any]]) -> Iterable[tuple[str, int, int]]:
    for riders in sorted({span["models"] for span in spans}, reverse=True):
        alike = [span for span in spans if span["models"] == riders]
        name = f"{len(alike)} spans shared by {riders}" if riders > 1 else f"{len(alike)} private"
        yield name, sum(s["rows"] for s in alike), sum(s["hops"] for s in alike)


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description="Many models on one engine: memory and speed.")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/sharing.json"))
    options = parser.parse_args()
    settings = EngineSettings(
        device="cpu",
        dtype="float32",
        memory=options.memory,
        prefix_cache=False,
        threads=options.threads,
    )
    seen = measure(Zoo(options.zoo), settings, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(seen, indent=2), encoding="utf-8")
    print(markdown(seen))
    raise SystemExit(0 if seen["memory_fits"] and not seen["requests_that_differ"] else 1)


if __name__ == "__main__":
    main()
