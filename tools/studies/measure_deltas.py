"""What compressed deltas cost and save, on the demo family.

frontier: bytes over loss of every codec and of the chosen mixes, for `full` over `base`
fleet:    sixteen fine-tunes as deltas beside the same sixteen as merged copies, arms in turns

    python -m tools.studies.measure_deltas frontier --out docs/compressed-deltas
    python -m tools.studies.measure_deltas fleet --out docs/compressed-deltas
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from blockllm.config import EngineSettings
from blockllm.core import Request, Sampling
from blockllm.engine import Engine
from blockllm.offline.compress.candidates import floats
from blockllm.offline.compress.choose import Mix
from blockllm.offline.compress.codecs import coded, decode
from blockllm.offline.compress.compressor import Compressor
from blockllm.offline.text import windows
from blockllm.zoo import Zoo
from blockllm.zoo.assemble import AnyTargets as Targets
from blockllm.zoo.assemble import NewLayer, NewTarget
from tools.demo import FAMILY

WINDOW, NUM_WINDOWS = 512, 8  # tokens, and as many windows as `zoo add` measures on
CODEC = "int2"  # of every weight of the sixteen
PROMPT, ANSWER = 32, 32  # tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("frontier", "fleet", "load"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=16, help="fine-tunes")
    parser.add_argument("--pairs", type=int, default=5, help="of runs, after one of each to warm")
    parser.add_argument("--models", nargs="*", help="of `load`")
    options = parser.parse_args()
    if options.what == "load":
        return load(options.out, options.models)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if options.what == "frontier":
            frontier(Path(folder), options.out)
        else:
            fleet(Path(folder), options.out, options.count, options.pairs)
    return None


def frontier(folder: Path, out: Path) -> None:
    """Measure uniform codecs and mixes on the fine-tune's own held-out text; JSON and a plot.

    What the JSON holds already is not measured again: a run that was stopped goes on.
    """
    path = out / "frontier.json"
    zoo = Zoo(folder / "zoo")
    zoo.add("base", FAMILY / "base")
    made = Compressor(zoo, FAMILY / "full", "base", folder / "scratch")
    text = windows(zoo, ["base"], (FAMILY / "heldout" / "network.txt").read_bytes(), WINDOW)
    text = text[:NUM_WINDOWS]
    points = [("one codec", "dropped", made.mixes[0])]
    for codec in made.candidates.weights[-1].codecs[1:]:
        points.append(("one codec", codec, made.uniform(codec)))
    print(json.dumps(made.weigh(text[:2])), flush=True)
    points += within(made)
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    known = {(row["kind"], row["name"], row["bytes"]) for row in rows}
    for kind, name, mix in points:
        if (kind, name, mix.nbytes) in known:
            continue
        loss = made.measure(mix, text)
        rows.append(
            {
                "kind": kind,
                "name": name,
                "bytes": mix.nbytes,
                "share": mix.nbytes / made.checkpoint_bytes,
                "kl": loss.kl,
                "rise": loss.perplexity / loss.reference_perplexity - 1,
                "agreement": loss.agreement,
                "tokens": loss.num_tokens,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
        path.write_text(json.dumps(rows, indent=1) + "\n")
        plot(rows, out / "frontier.png")


def within(made: Compressor) -> list[tuple[str, str, Mix]]:
    """The best mixes within some sizes."""
    found = []
    for share in (0.04, 0.06, 0.08, 0.1, 0.12, 0.14, 0.2, 0.25, 0.4):
        fitting = [mix for mix in made.mixes if mix.nbytes <= share * made.checkpoint_bytes]
        if fitting:
            found.append(("chosen", f"within {share:.0%}", fitting[-1]))
    return found


_STYLES = {"chosen": "o-", "one codec": "s"}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bytes against KL and rise of the perplexity."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("Agg")
    figure = Figure(figsize=(10, 4), layout="constrained")
    for place, key in enumerate(("kl", "rise"), 1):
        panel = figure.add_subplot(1, 2, place)
        panel.grid(alpha=0.3)
        for kind, style in _STYLES.items():
            own = sorted((r for r in rows if r["kind"] == kind), key=lambda r: r["bytes"])
            panel.plot([100 * r["share"] for r in own], [r[key] for r in own], style, label=kind)
            for row in own if kind == "one codec" else ():
                panel.annotate(row["name"], (100 * row["share"], row[key]), fontsize=8,
                               xytext=(4, 4), textcoords="offset points")  # fmt: skip
        panel.set(xlabel="size, % of the checkpoint's bytes")
    kl, rise = figure.axes
    kl.set(yscale="log", ylabel="KL of next tokens (nats)")
    rise.set(ylabel="rise of the perplexity", yscale="symlog")
    rise.set_yscale("symlog", linthresh=0.01)
    rise.axhline(0.01, color="gray", linestyle="--")
    kl.legend()
    figure.savefig(path, dpi=80)


def fleet(folder: Path, out: Path, count: int, pairs: int) -> None:
    """Serve the same fine-tunes both ways; outputs must agree before anything is timed."""
    zoo = Zoo(folder / "zoo")
    zoo.add("base", FAMILY / "base")
    made = Compressor(zoo, FAMILY / "full", "base", folder / "scratch")
    first = made.new_targets(made.uniform(CODEC))
    for index in range(count):
        add_both(zoo, varied(first, index) if index else first, index)
    arms = {kind: [f"{kind}{index}" for index in range(count)] for kind in ("delta", "merged")}
    memory = {kind: loaded(folder / "zoo", names) for kind, names in arms.items()}
    engines = {
        kind: Engine(zoo, names, EngineSettings(memory="1GiB", prefix_cache=False))
        for kind, names in arms.items()
    }
    found: dict[str, Any] = {"count": count, "codec": CODEC, "memory": memory, "rates": {}}
    found["agreement"] = check(engines, count)
    for each in (1, 4):
        rates: dict[str, list[float]] = {kind: [] for kind in engines}
        for turn in range(pairs + 1):
            for kind, engine in engines.items():
                rate = run(engine, kind, count, each)[0]
                if turn:
                    rates[kind].append(rate)
        ratios = [a / b for a, b in zip(rates["delta"], rates["merged"], strict=True)]
        summary = {kind: statistics.median(values) for kind, values in rates.items()}
        summary |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        found["rates"][each] = summary
        print(each, json.dumps(summary), flush=True)
    (out / "fleet.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def varied(targets: Targets, index: int) -> Targets:
    """Another fine-tune: every weight's difference plus noise a third as large, encoded alike."""
    generator = torch.Generator().manual_seed(index)
    known: dict[bytes, NewTarget] = {}  # tied weights stay tied
    found: Targets = {}
    for position, modules in targets.items():
        for module, group in modules.items():
            (target,) = group
            assert isinstance(target, NewTarget)
            if target.kind == "coded":
                codes = target.parts["codes"]
                if codes.tobytes() not in known:
                    difference = decode(target, codes.shape[1] * 4)
                    noise = torch.randn(difference.shape, generator=generator)
                    difference += difference.std() / 3 * noise
                    known[codes.tobytes()] = coded(2)(difference)
                target = known[codes.tobytes()]
            found.setdefault(position, {})[module] = (target,)
    return found


def add_both(zoo: Zoo, targets: Targets, index: int) -> None:
    """The same weights as a delta and merged into a copy, in fp32 as they are served."""
    layers = []
    for position, layer in enumerate(zoo.layers("base")):
        tensors = {name: floats(zoo, tensor) for name, tensor in layer.tensors.items()}
        for module, group in targets.get(position, {}).items():
            key = "weight" if module in ("embed", "head") else f"{module}.weight"
            for target in group:
                assert isinstance(target, NewTarget)
                if target.kind == "norm":
                    tensors[key] = torch.from_numpy(target.parts["weight"])
                else:
                    tensors[key] += decode(target, tensors[key].shape[1])
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        layers.append(NewLayer(layer.function, arrays))
    zoo.assemble(f"delta{index}", "base", zoo.layers("base"), targets=targets, parent="base")
    zoo.assemble(f"merged{index}", "base", layers)


def check(engines: dict[str, Engine], count: int) -> float:
    """Share of equal greedy tokens: the arms sum in another order, so ties may part them."""
    answers = [run(engine, kind, count, 1)[1] for kind, engine in engines.items()]
    equal = [
        a == b for one, two in zip(*answers, strict=True) for a, b in zip(one, two, strict=True)
    ]
    share = sum(equal) / len(equal)
    assert share > 0.9, f"the arms compute different things: {share:.1%} of tokens agree"
    return share


def run(engine: Engine, kind: str, count: int, each: int) -> tuple[float, list[list[int]]]:
    """Output tokens a second of `each` requests to every model at once, and their tokens."""
    answers: dict[str, list[int]] = {}
    for index in range(count * each):
        tokens = [(7 * index + 13 * i) % 4000 + 5 for i in range(PROMPT)]
        sampling = Sampling(max_tokens=ANSWER, temperature=0.0, ignore_eos=True)
        answers[str(index)] = []
        engine.submit(Request(str(index), f"{kind}{index % count}", tuple(tokens), sampling))
    started = time.perf_counter()
    while engine.has_work:
        for event in engine.step():
            if event.token is not None:
                answers[event.request].append(event.token)
    seconds = time.perf_counter() - started
    return sum(map(len, answers.values())) / seconds, list(answers.values())


def loaded(zoo: Path, models: list[str]) -> dict[str, int]:
    """Memory of a process of its own that holds the models."""
    command = [sys.executable, "-m", "tools.studies.measure_deltas", "load", "--out", str(zoo)]
    out = subprocess.run([*command, "--models", *models], capture_output=True, check=True)
    found: dict[str, int] = json.loads(out.stdout)
    return found


def load(zoo: Path, models: list[str]) -> None:
    """Print the bytes of weights that an engine counts, and what it added to this process."""
    before = anonymous()
    engine = Engine(Zoo(zoo), models, EngineSettings(memory="1GiB", prefix_cache=False))
    weights = engine.stats().weight_bytes
    kv = engine.stats().kv_bytes
    print(json.dumps({"weights": weights, "kv": kv, "process": anonymous() - before}))


def anonymous() -> int:
    """Bytes of this process's memory, mapped files included."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(text.partition("Rss:")[2].split()[0])


if __name__ == "__main__":
    main()
