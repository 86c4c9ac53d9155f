"""Every cut between the demo family's two bases: one general bridge beside one bridge per cut.

Writes stitching.json and stitching.png. Steps are counted so that both kinds of bridges see equally
many: a general bridge's steps are shared by all cuts. The same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from blockllm.offline.stitching.bridge import BridgePowers
from blockllm.offline.stitching.cuts import Cut, matching_cuts
from blockllm.offline.stitching.stitch import Stitched, StitchOptions, stitch
from blockllm.offline.training.loop import TrainingSchedule
from blockllm.zoo import Zoo
from tools.demo import FAMILY
from tools.demo.training import corpus

TEXT_BYTES = 400_000  # of general text to learn from
FRONT, BACK = "base", "wide"
MEASURED_BYTES = 6_000  # of held-out text
WINDOW = 128


class Run(NamedTuple):
    """One training of one bridge."""

    label: str
    front: str
    back: str
    cuts: tuple[Cut, ...]
    terms: BridgePowers
    steps: int

    @property
    def name(self) -> str:
        where = "" if len(self.cuts) > 1 else f"-at-{self.cuts[0].front}"
        return f"{self.front}-{self.back}-{self.label}{where}".replace(" ", "-")


def runs(zoo: Zoo, steps: int) -> Iterator[Run]:
    """All trainings; `steps` for each cut."""
    cuts = tuple(matching_cuts(zoo.layers(FRONT), zoo.layers(BACK)))
    yield Run("linear", FRONT, BACK, cuts, BridgePowers(2, 2), steps * len(cuts))
    yield Run("bias", FRONT, BACK, cuts, BridgePowers(1, 2), steps * len(cuts))
    yield Run("linear least squares", FRONT, BACK, cuts, BridgePowers(2, 2), 0)
    for cut in cuts:
        yield Run("own", FRONT, BACK, (cut,), BridgePowers(1, 1), steps)
        yield Run("own least squares", FRONT, BACK, (cut,), BridgePowers(1, 1), 0)


def measure(work: Path, steps: int, rate: float, rows: int, pause_after: float) -> bool:
    """Do the runs that are not done; False if the time was up before the last."""
    texts = corpus.load_splits()[corpus.GENERAL]
    text = "\n\n".join(texts.train).encode()[:TEXT_BYTES].decode(errors="ignore").encode()
    measured = texts.heldout.encode()[:MEASURED_BYTES]
    zoo = Zoo(work / "zoo")
    known = {card.name for card in zoo.cards()}
    for model in (FRONT, BACK):
        if model not in known:
            zoo.add(model, FAMILY / model)
    results = work / "results"
    results.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    def progress(what: str, done: int, total: int) -> None:
        if total and time.monotonic() - begin > pause_after and done % 20 == 0:
            raise TimeoutError

    for run in runs(zoo, steps):
        path = results / f"{run.name}.json"
        if path.exists():
            continue
        if time.monotonic() - begin > pause_after:
            return False
        options = StitchOptions(
            run.front, run.back, run.cuts, run.name, text, WINDOW,
            TrainingSchedule(run.steps, rate, rows, every=20), run.terms, measured,
            checkpoint=work / f"{run.name}.safetensors",
        )  # fmt: skip
        try:
            made = stitch(zoo, options, progress)
        except TimeoutError:
            return False
        path.write_bytes(msgspec.json.encode(made))
        for one in made:
            print(one.name, f"{one.loss.perplexity:.2f}", f"KL {one.loss.kl:.4f}", flush=True)
            zoo.remove(one.name)
    return True


def collect(work: Path, steps: int) -> list[dict[str, Any]]:
    """All results as rows of one table."""
    rows: list[dict[str, Any]] = []
    for run in runs(Zoo(work / "zoo"), steps):
        made = msgspec.json.decode((work / "results" / f"{run.name}.json").read_bytes(),
                                   type=list[Stitched])  # fmt: skip
        rows += [
            {
                "front": one.front, "back": one.back, "bridge": run.label,
                "cut": list(one.cut), "steps": run.steps,
                "perplexity": round(one.loss.perplexity, 3),
                "kl": round(one.loss.kl, 5), "agreement": round(one.loss.agreement, 4),
                "nbytes": one.cost.nbytes, "flops": one.cost.flops,
                "front_perplexity": round(one.front_perplexity, 3),
                "back_perplexity": round(one.loss.reference_perplexity, 3),
                "front_flops": one.front_cost.flops, "back_flops": one.back_cost.flops,
                "front_nbytes": one.front_cost.nbytes, "back_nbytes": one.back_cost.nbytes,
            }
            for one in made
        ]  # fmt: skip
    return rows


STYLES = {
    "own least squares": ("x:", "one bridge per cut, least squares only"),
    "own": ("o-", "one bridge per cut"),
    "linear least squares": ("+:", "one bridge for all (W0 + t W1), least squares only"),
    "bias": ("^--", "one bridge for all: bias moves with t"),
    "linear": ("s-", "one bridge for all: W0 + t W1"),
}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Perplexity over FLOPs beside the bases' own, and KL to the back model over FLOPs."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(12, 4.8))
    for panel, value in zip(panels, ("perplexity", "kl"), strict=True):
        for label, (style, shown) in STYLES.items():
            line = sorted((r["cut"][0], r["flops"] / 1e6, r[value]) for r in rows
                          if r["bridge"] == label)  # fmt: skip
            panel.plot([x for _, x, _ in line], [y for _, _, y in line], style, label=shown, ms=5)
            for cut, x, y in line if label == "linear" else ():
                panel.annotate(cut, (x, y), xytext=(3, 7), textcoords="offset points")
        panel.set_xlabel("MFLOP per token (linears); numbers: base layers before the bridge")
        panel.grid(alpha=0.3)
    for side in ("front", "back"):
        x, y = rows[0][f"{side}_flops"] / 1e6, rows[0][f"{side}_perplexity"]
        panels[0].plot([x], [y], "k*", ms=13)
        panels[0].annotate(rows[0][side], (x, y), xytext=(7, -12), textcoords="offset points")
    panels[0].set_ylabel("perplexity, held-out general text")
    panels[1].set_ylabel(f"KL to {BACK}, nats")
    panels[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    """Measure, then write both files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="where zoo and checkpoints go")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--steps", type=int, default=8, help="for each cut")
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--pause-after", type=float, default=float("inf"), metavar="SECONDS")
    given = parser.parse_args()
    torch.set_flush_denormal(True)
    if not measure(given.work, given.steps, given.rate, given.rows, given.pause_after):
        raise SystemExit("paused; the same command goes on")
    rows = collect(given.work, given.steps)
    (given.out / "stitching.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    plot(rows, given.out / "stitching.png")


if __name__ == "__main__":
    main()
