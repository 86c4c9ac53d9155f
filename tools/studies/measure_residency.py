"""Many models in the memory of a few: blockllm, blockllm with all resident, llama.cpp's router.

    python -m tools.studies.measure_residency --family out/many --llama-server BIN/llama-server
        [--models 40 --budget 12 --pairs 3 --requests 240 --out out/residency]

Requests come at times of their own (open loop), models by Zipf's law in an order drawn once. The
rate is a share of what the arm with everything resident serves in a closed loop. Arms run in turn,
each started anew and warmed up; the router gets as many models as fit into the memory that the
processes of blockllm took at most (proportional set size, so that mapped files count once).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import uvloop
from msgspec.structs import replace

from blockllm.bench.metrics import Report, report
from blockllm.bench.runner import Run, Sender
from blockllm.bench.workload import Planned, Workload, plan
from tools.studies.drive import as_data, write_report
from tools.studies.make_many import Family, add_arguments, make_many
from tools.studies.measure_sharing import spread
from tools.studies.residency_servers import Arm, Blockllm, Router, Running

OURS, RESIDENT, ROUTER = "blockllm", "all resident", "llama.cpp's router"
GB = 1e9


class Seen(NamedTuple):
    """One run of one arm. Times in seconds; memory and loads in GB."""

    tokens_per_second: float
    first_token_p50: float
    first_token_p95: float
    time_per_token_p50: float
    worst_gap: float
    failed: int
    loads: int
    loaded: float
    peak_memory: float


def workload(family: Family, options: argparse.Namespace, seed: int) -> Workload:
    """What is asked in one run. Which models are popular is drawn once, for all runs."""
    names = [model.name for model in family.models]
    order = np.random.default_rng(options.seed).permutation(len(names))
    return Workload(
        models=tuple(names[place] for place in order),
        requests=options.requests,
        prompt_length=options.prompt,
        output_length=options.output,
        popularity=f"zipf:{options.zipf}",
        token_range=f"3:{options.vocab}",
        seed=options.seed + seed,
    )


def closed(asked: Workload, requests: int, concurrency: int) -> list[Planned]:
    """Requests that are sent when others have ended; of other prompts than the measured ones."""
    other = asked.seed + 7_919
    return plan(replace(asked, requests=requests, concurrency=concurrency, seed=other))


def stored_bytes(family: Family) -> int:
    """Bytes of all weights, each block once."""
    return sum(pack.stat().st_size for pack in packs(family))


def packs(family: Family) -> list[Path]:
    """The files that hold the weights of the zoo."""
    return [file for file in (family.zoo / "packs").rglob("*") if file.is_file()]


class Study:
    """The family, the load, and the arms."""

    def __init__(self, family: Family, options: argparse.Namespace) -> None:
        self.family, self.options, self.rate = family, options, options.rate
        self.memory = int(options.budget * sum(m.nbytes for m in family.models))
        self.memory //= len(family.models)
        flags = ("--threads", str(options.threads), "--log-level", "warning")
        self.ours = Blockllm(OURS, family, self.memory, flags)
        everything = options.pages + stored_bytes(family)
        self.resident = Blockllm(RESIDENT, family, everything, flags)

    def router(self, models_max: int) -> Router:
        """The peer with room for so many models."""
        flags = tuple(self.options.router_flags.split())
        return Router(ROUTER, self.family, self.options.llama_server, models_max, flags)

    def measure_rate(self) -> None:
        """Set the rate to a share of what is served with everything resident."""
        asked = workload(self.family, self.options, 0)
        with Running(self.resident, self._log("rate")) as running:
            for _ in range(2):  # the first warms up
                sent = closed(asked, self.options.requests // 2, self.options.concurrency)
                run = send(running, sent, self.options.concurrency)
        self.rate = self.options.load * len(run.outcomes) / run.duration

    def fit_router(self, limit: int) -> int:
        """How many models the router may hold so that its processes stay within the limit in
        bytes: those asked most are loaded one after another."""
        asked = workload(self.family, self.options, 0)
        order, fitting = asked.models, 0
        with Running(self.router(len(order)), self._log("fit")) as running:
            for name in order:
                one = closed(replace(asked, models=(name,)), 1, 1)
                send(running, one, 1)
                if running.memory().pss > limit:
                    break
                fitting += 1
        return fitting

    def run(self, arm: Arm, pair: int) -> Seen:
        """One arm, started anew: warm up, then the pair's requests when they are due."""
        options = self.options
        asked = replace(workload(self.family, options, pair), rate=self.rate)
        with Running(arm, self._log(f"{arm.name}-{pair}")) as running:
            send(running, closed(asked, options.warm_up, options.concurrency), options.concurrency)
            before = running.loads()
            run = send(running, plan(asked))
            after = running.loads()
            peak = running.peak.pss
        moved = (after.models - before.models, (after.nbytes - before.nbytes) / GB)
        return see(report(run), *moved, peak / GB)

    def _log(self, name: str) -> Path:
        return Path(self.options.logs) / f"{name.replace(' ', '-')}.log"


def send(running: Running, planned: Sequence[Planned], concurrency: int = 0) -> Run:
    """Replay a plan."""
    return uvloop.run(Sender(running.targets).replay(planned, concurrency))


def see(found: Report, loads: int, loaded: float, peak: float) -> Seen:
    """The figures of one run. Raises SystemExit where no request was answered."""
    total = found.total
    if total.ttft is None or total.tpot is None or total.itl is None:
        raise SystemExit(f"no request was answered: {total.failed}")
    return Seen(
        total.output_tokens_per_second,
        total.ttft.p50,
        total.ttft.p95,
        total.tpot.p50,
        total.itl.max,
        sum(total.failed.values()),
        loads,
        loaded,
        peak,
    )


def table(found: Mapping[str, Sequence[Seen]]) -> str:
    """A row per figure, a column per arm: median, least and largest of its runs."""
    rows = {
        "tokens per second": ("tokens_per_second", 1, 1),
        "first token p50, ms": ("first_token_p50", 1000, 0),
        "first token p95, ms": ("first_token_p95", 1000, 0),
        "time per token p50, ms": ("time_per_token_p50", 1000, 1),
        "worst gap between tokens, ms": ("worst_gap", 1000, 0),
        "requests failed": ("failed", 1, 0),
        "models loaded meanwhile": ("loads", 1, 0),
        "GB loaded meanwhile": ("loaded", 1, 2),
        "most memory, GB": ("peak_memory", 1, 2),
    }
    lines = ["| | " + " | ".join(found) + " |", "|---" * (len(found) + 1) + "|"]
    for title, (field, scale, digits) in rows.items():
        cells = [
            spread([scale * getattr(seen, field) for seen in runs], digits)
            for runs in found.values()
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def compare(study: Study, options: argparse.Namespace) -> dict[str, list[Seen]]:
    """All pairs; every second one in the other order."""
    if not study.rate:
        study.measure_rate()
        print(f"rate: {study.rate:.2f} requests/s", flush=True)
    arms: list[Arm] = [study.ours, study.resident]
    if options.llama_server:
        fitting = options.models_max
        if not fitting:
            peak = study.run(study.ours, options.pairs).peak_memory
            fitting = study.fit_router(int(peak * GB))
            print(f"the router holds {fitting} models in {peak:.2f} GB", flush=True)
        arms.append(study.router(fitting))
    found: dict[str, list[Seen]] = {arm.name: [] for arm in arms}
    for pair in range(options.pairs):
        for arm in arms if pair % 2 else reversed(arms):
            seen = study.run(arm, pair)
            found[arm.name].append(seen)
            print(f"{pair}, {arm.name}: {seen}", flush=True)
    return found


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """The family, the servers, and what is asked of them."""
    add_arguments(parser)
    parser.add_argument("--family", type=Path, required=True, help="Folder to keep models in.")
    parser.add_argument("--llama-server", default="", help="The peer; none: without it.")
    parser.add_argument("--router-flags", default="-t 1 -np 4 -c 1024 -ub 256 --cache-ram 0")
    parser.add_argument("--budget", type=float, default=12, help="Memory, in models.")
    parser.add_argument("--pages", type=int, default=256 << 20, help="Bytes, beside all weights.")
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--prompt", default="uniform:16:96")
    parser.add_argument("--output", default="uniform:16:48")
    parser.add_argument("--zipf", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=0.0, help="Requests a second; 0: measured.")
    parser.add_argument("--load", type=float, default=0.6, help="Share of what is sustained.")
    parser.add_argument("--concurrency", type=int, default=8, help="Where no times are given.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--logs", type=Path, default=Path("out/residency-logs"))
    parser.add_argument("--out", type=Path)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Many models in the memory of a few.")
    add_load_arguments(parser)
    parser.add_argument("--models-max", type=int, default=0, help="The router's; 0: what fits.")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--warm-up", type=int, default=120)
    return parser.parse_args(words)


def open_study(options: argparse.Namespace) -> Study:
    """With the family that the options say, written if it is not there."""
    sizes = (options.models, options.layers, options.hidden, options.vocab)
    return Study(make_many(options.family, *sizes), options)


def main() -> None:
    """Read the command line, measure, print, write."""
    options = parse_arguments()
    study = open_study(options)
    found = compare(study, options)
    print(table(found))
    facts = {"memory_bytes": study.memory, "rate": study.rate}
    write_report(options, "residency.json", {**facts, "runs": as_data(found)})


if __name__ == "__main__":
    main()
