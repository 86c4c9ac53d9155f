"""How fast weights become ready on the CPU, beside what copying the same bytes takes.

    python -m tools.studies.measure_loading --zoo DIR --model NAME [--rounds 5 --out out/load.json]

Every measurement runs in a fresh process, the kinds in turn, all from the page cache (a first
round fills it and is dropped). Copies move the same tensors as loading does, with all threads:

    touched   from mapped files to memory that was used before
    fresh     from files mapped just now to new memory, page faults on both sides included
    huge      the same to new memory in huge pages, as the engine takes it

`mapped` is loading without reading and verifying first (verify_weights = false).
`again` is a second loading in the process of a first one: in virtual machines that hand free memory
back to their host, touching memory costs far more the first time, in every process.
`ready` is the time from starting `blockllm serve` to its ready line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from blockllm.chain import plan_spans
from blockllm.core import Chain, EmbedFunction, Tensor
from blockllm.engine.kernels.cpu.build import native_library
from blockllm.engine.kernels.cpu.memory import new_memory
from blockllm.engine.layers.block import BlockExecutor
from blockllm.engine.weights.loader import TensorLoader
from blockllm.zoo import Zoo
from tools.studies.measure_sharing import spread

CPU = torch.device("cpu")
COPIES = ("touched", "fresh", "huge")
KINDS = ("load", "mapped", "again", *COPIES)


def copied_tensors(chain: Chain) -> list[Tensor]:
    """Distinct tensors that loading copies; the embedding's stay mapped."""
    layers = [layer for entry in chain.entries for layer in entry.block.layers]
    layers = [layer for layer in layers if not isinstance(layer.function, EmbedFunction)]
    return list({t.hash: t for layer in layers for t in layer.tensors.values()}.values())


def time_load(zoo: Zoo, chain: Chain, verify: bool = True) -> float:
    """Seconds from planned spans to weights that the executor multiplies by."""
    native_library()
    start = time.perf_counter()
    loader = TensorLoader(zoo, CPU, torch.float32, verify=verify)
    plan = plan_spans([chain], merge=True)
    blocks = [BlockExecutor(block, loader) for span in plan.spans for block in span.blocks]
    seconds = time.perf_counter() - start
    assert blocks
    return seconds


def time_copy(zoo: Zoo, tensors: list[Tensor], kind: str) -> float:
    """Seconds to copy tensors from mapped files as they are stored."""
    allocate: Callable[[torch.Tensor], torch.Tensor] = torch.empty_like
    if kind == "huge":
        allocate = lambda view: new_memory(*view.shape, dtype=view.dtype)  # noqa: E731

    def copy() -> list[torch.Tensor]:
        return [allocate(view).copy_(view) for view in map(loader.load, tensors)]

    loader = TensorLoader(zoo, CPU, torch.float32, verify=False)
    if kind == "touched":
        pairs = list(zip(copy(), map(loader.load, tensors), strict=True))
        start = time.perf_counter()
        for target, view in pairs:
            target.copy_(view)
        return time.perf_counter() - start
    start = time.perf_counter()
    kept = copy()
    seconds = time.perf_counter() - start
    assert len(kept) == len(tensors)
    return seconds


def measure_one(zoo: Zoo, model: str, kind: str) -> dict[str, float]:
    """Seconds and bytes of one kind, in this process."""
    chain = zoo.chain(model)
    tensors = copied_tensors(chain)
    if kind == "again":
        time_load(zoo, chain)
    copies = kind in COPIES
    seconds = time_copy(zoo, tensors, kind) if copies else time_load(zoo, chain, kind != "mapped")
    return {"seconds": seconds, "bytes": sum(t.nbytes for t in tensors)}


def time_ready(zoo: Path, model: str) -> float:
    """Seconds from starting a server to its ready line; it is stopped again."""
    command = [sys.executable, "-m", "blockllm", "serve", model]
    command += ["--zoo", str(zoo), "--port", "0", "--dtype", "float32", "--device", "cpu"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        ready = any(" ready on " in line for line in server.stdout)
        seconds = time.perf_counter() - start
        server.terminate()
    assert ready, "the server ended before it was ready"
    return seconds


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds of all kinds, each in a process of its own."""
    seen: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    ready = []
    command = [sys.executable, "-m", "tools.studies.measure_loading", "--zoo", str(options.zoo)]
    command += ["--model", options.model, "--threads", str(options.threads), "--one"]
    for round_number in range(options.rounds + 1):
        for kind in KINDS:
            found = json.loads(subprocess.check_output([*command, kind], text=True))
            if round_number:
                seen[kind].append(found)
        if round_number:
            ready.append(time_ready(options.zoo, options.model))
    return {"model": options.model, "threads": options.threads, "seen": seen, "ready": ready}


def markdown(result: dict[str, Any]) -> str:
    """The table of the documentation."""
    seen = result["seen"]
    moved = seen["load"][0]["bytes"]
    rates = {kind: [moved / one["seconds"] / 1e9 for one in seen[kind]] for kind in KINDS}
    seconds = [one["seconds"] for one in seen["load"]]
    rows = [
        (f"weights ready to multiply, {moved / 1e6:,.0f} MB copied, s", spread(seconds, 3)),
        ("the same, GB/s", spread(rates["load"])),
        ("mapped and not verified, GB/s", spread(rates["mapped"])),
        ("again in the same process, GB/s", spread(rates["again"])),
        *((f"copying the same, {kind}, GB/s", spread(rates[kind])) for kind in COPIES),
        *((f"loading / copying {kind}", _share(rates["load"], rates[kind])) for kind in COPIES),
        ("serve: start to ready, s", spread(result["ready"])),
        (
            "the same without loading weights, s",
            f"{statistics.median(result['ready']) - statistics.median(seconds):.2f}",
        ),
    ]
    return "\n".join(["| what | seen |", "|---|---|", *(f"| {a} | {b} |" for a, b in rows)])


def _share(load: list[float], copy: list[float]) -> str:
    ratios = [100 * a / b for a, b in zip(load, copy, strict=True)]
    return f"{spread(ratios, 0)} %"


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description="Loading of weights against memory copies.")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--one", choices=KINDS, help="Measure this once, here; print JSON.")
    parser.add_argument("--out", type=Path, default=Path("out/load.json"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        print(json.dumps(measure_one(Zoo(options.zoo), options.model, options.one)))
        return
    result = measure(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
