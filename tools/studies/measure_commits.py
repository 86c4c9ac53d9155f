"""Two checkouts of this project, interleaved: has a change cost speed?

    git worktree add BEFORE COMMIT
    python -m tools.studies.measure_commits --before BEFORE --zoo-before ZOO --zoo ZOO

Each checkout has a process of its own that loads the same models; they run the same requests in
turn, the order changing from pair to pair. First both play a trace whose requests come turn by
turn, and the rows of every span in every turn have to be the same. Both zoos hold the family of
`bench_family` under its names, and its base as int8 blocks as `base-int8`. Greedy tokens must be
equal. The processes use only what every commit's engine has: `submit`, `step`, `has_work`, `stats`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
# what a process runs, as text: it must not import this tree's files into another tree's process
CHILD = """
import json, sys, time
from pathlib import Path
import numpy as np
from blockllm.config import EngineSettings
from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.zoo import Zoo
zoo, models, memory = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
settings = EngineSettings(memory=memory, prefix_cache=False, dtype="float32", max_turn_seconds=0)
engine = Engine(Zoo(Path(zoo)), models, settings)
print(json.dumps("ready"), flush=True)
def rows():
    return [span.rows for span in engine.stats().spans]
def play(seed, count):
    draws, seen, sent = np.random.default_rng(seed), [], 0
    while sent < count or engine.has_work:
        while sent < count and draws.random() < 0.4:
            ids = draws.integers(3, 2000, int(draws.integers(1, 60))).tolist()
            sampling = Sampling(max_tokens=int(draws.integers(1, 20)), temperature=0.0)
            engine.submit(Request(str(sent), models[sent % len(models)], tuple(ids), sampling))
            sent += 1
        engine.step()
        seen.append(rows())
    return seen
for line in sys.stdin:
    seed, concurrency, prompt, output = json.loads(line)
    if not output:
        print(json.dumps(play(seed, concurrency)), flush=True)
        continue
    draws = np.random.default_rng(seed)
    sampling = Sampling(max_tokens=output, temperature=0.0, ignore_eos=True)
    for i in range(concurrency):
        ids = draws.integers(3, 2000, prompt).tolist()
        engine.submit(Request(str(i), models[i % len(models)], tuple(ids), sampling))
    tokens, first, start = {}, None, time.perf_counter()
    while engine.has_work:
        for event in engine.step():
            tokens.setdefault(event.request, []).append(event.token)
        if first is None and len(tokens) == concurrency:
            first = time.perf_counter()
    end = time.perf_counter()
    found = [tokens[str(i)] for i in range(concurrency)]
    print(json.dumps([end - start, (end - first) / (output - 1), found]), flush=True)
"""
FOUR = tuple(f"lora{i}" for i in range(4))
TRACE = 40  # requests of the trace whose plans are compared
SEVENTEEN = ("base", *(f"ft{i}" for i in range(8)), *(f"lora{i}" for i in range(8)))


class Case(NamedTuple):
    """Requests that run at once."""

    name: str
    models: tuple[str, ...]
    concurrency: int


CASES = [
    *(Case(f"fp32, {n} at once", ("base",), n) for n in (1, 8, 32)),
    *(Case(f"int8, {n} at once", ("base-int8",), n) for n in (1, 8, 32)),
    Case("four adapters, 8 at once", FOUR, 8),
    Case("seventeen models, 17 at once", SEVENTEEN, 17),
]


class Checkout:
    """A process of one checkout with its engine."""

    def __init__(self, tree: Path, zoo: Path, models: tuple[str, ...], memory: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(zoo), ",".join(models), memory],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self._process.args} ended: see above")
        return json.loads(line)

    def run(self, seed: int, case: Case, prompt: int, output: int) -> tuple[float, float, Any]:
        """Seconds of the whole, seconds per decoding turn, tokens."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([seed, case.concurrency, prompt, output]) + "\n")
        self._process.stdin.flush()
        whole, turn, tokens = self._answer()
        return whole, turn, tokens

    def rows(self, seed: int, requests: int) -> Any:
        """Rows of each span so far, behind every turn of a trace."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([seed, requests, 0, 0]) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()


class Result(NamedTuple):
    """One case: seconds before and now of each pair, and ratios of speed (more is better now)."""

    case: str
    whole: list[tuple[float, float]]
    turns: list[tuple[float, float]]

    def ratios(self, pairs: list[tuple[float, float]]) -> list[float]:
        return [before / now for before, now in pairs]

    def row(self) -> str:
        """A line of the table."""
        cells = []
        for pairs in (self.whole, self.turns):
            ratios = self.ratios(pairs)
            middle = statistics.median(ratios)
            best = min(before for before, _ in pairs) / min(now for _, now in pairs)
            cells.append(f"{middle:.3f} ({min(ratios):.2f} to {max(ratios):.2f}; {best:.3f})")
        before, now = (1e3 * statistics.median(column) for column in zip(*self.turns, strict=True))
        return f"| {self.case} | {cells[0]} | {cells[1]} | {before:.1f} | {now:.1f} |"


def measure(arguments: argparse.Namespace, group: list[Case]) -> list[Result]:
    """All cases of the same models; the first pair warms up and is dropped."""
    trees = [(arguments.before, arguments.zoo_before), (REPOSITORY, arguments.zoo)]
    arms = [Checkout(*tree, group[0].models, arguments.memory) for tree in trees]
    before, now = (arm.rows(7, TRACE) for arm in arms)
    if before != now:
        first = next(i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b)
        raise SystemExit(f"{group[0].name}: the plans differ in turn {first} of the trace")
    print(f"{group[0].name}: equal rows in {len(now)} turns", file=sys.stderr)
    found = []
    for case in group:
        result = Result(case.name, [], [])
        for pair in range(arguments.pairs + 1):
            times: list[Any] = [None, None]
            for arm in (0, 1) if pair % 2 else (1, 0):
                times[arm] = arms[arm].run(pair, case, arguments.prompt, arguments.output)
            if times[0][2] != times[1][2]:
                raise SystemExit(f"{case.name}: the tokens of the two checkouts differ")
            if pair:
                result.whole.append((times[0][0], times[1][0]))
                result.turns.append((times[0][1], times[1][1]))
        print(result.row(), flush=True)
        found.append(result)
    for arm in arms:
        arm.close()
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--before", type=Path, required=True, help="checkout of the other commit")
    parser.add_argument("--zoo-before", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--output", type=int, default=32)
    parser.add_argument("--memory", default="4GiB")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--out", type=Path, help="folder for results")
    arguments = parser.parse_args()
    # ratios: median of pairs, least and most; of the fastest runs
    print("| case | whole: before / now | decoding turn: before / now | before, ms | now, ms |")
    print("| --- | --- | --- | --- | --- |")
    chosen = [case for case in CASES if arguments.only in case.name]
    results: list[Result] = []
    for models in dict.fromkeys(case.models for case in chosen):
        results += measure(arguments, [case for case in chosen if case.models == models])
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        rows = [result._asdict() for result in results]
        (arguments.out / "commits.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
