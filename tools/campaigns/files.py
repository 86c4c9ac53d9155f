"""Coverage-guided campaign over everything that is read: files, settings, messages, bodies.

Each target runs under atheris in a process of its own, on seeds that are made, not kept. Only our
own errors may come out, each input within a second, in bounded memory, with nothing written
outside. Exit status 1 if anything else happened.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tools.campaigns.oracle import MAX_KEPT, save
from tools.campaigns.targets import TARGETS

CONSOLE = Console()
ROOT = Path(__file__).parents[2]
SHARED = Path("/dev/shm")  # in memory: most targets write files
# inputs of each target, in thousands; those that read whole zoos are slow
THOUSANDS = {
    "adapter_folder": 4, "catalogue_bytes": 20, "catalogue_values": 20, "packs": 10,
    "tokenizer": 50, "tokens": 50, "sentencepiece": 80, "vocabulary": 50, "template": 80,
    "to_agent": 40, "adapter_config": 80, "endless_template": 4,
}  # fmt: skip
USUAL = 100  # thousands, of the others
GRACE_SECONDS = 120  # for importing, making seeds, and a last slow input
_COVERED = re.compile(r"cov: (\d+) ft: (\d+) corp: (\d+)")


def run_target(name: str, share: float, seconds: int, seed: int) -> dict[str, Any]:
    """Fuzz one target; its report."""
    inputs = max(int(1000 * THOUSANDS.get(name, USUAL) * share), 100)
    place = SHARED if os.access(SHARED, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix=f"campaign-{name}-", dir=place) as made:
        folder = Path(made)
        (folder / "scratch").mkdir()
        command = [sys.executable, "-m", "tools.campaigns.guided", name, made]
        command += [str(inputs), str(seconds), str(seed)]
        start = time.monotonic()
        with (folder / "log").open("wb") as log:
            limit = seconds + GRACE_SECONDS
            status = _wait(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT), limit)
        report = _read(folder, status)
    return {"target": name, **report, "seconds": round(time.monotonic() - start, 1), "seed": seed}


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | str:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return "did not end"


def _read(folder: Path, status: int | str) -> dict[str, Any]:
    """The target's own report, with what the fuzzer's log and its artifacts say."""
    log = (folder / "log").read_text("utf-8", "replace")
    path = folder / "report.json"
    report = json.loads(path.read_text("utf-8")) if path.exists() else {"inputs": 0, "faults": []}
    covered = _COVERED.findall(log)
    if covered:
        report["edges"], report["features"], report["corpus"] = map(int, covered[-1])
    runs = re.findall(r"number_of_executed_units:\s*(\d+)", log)
    report["inputs"] = max(report["inputs"], *map(int, runs or ["0"]))
    crashes = {path.name: path.read_bytes()[:MAX_KEPT].hex() for path in folder.glob("crash-*")}
    if status != 0 or crashes:
        report["faults"].append({"what": f"ended with {status}", "where": log[-2000:], **crashes})
    return report


def table_of(reports: list[dict[str, Any]]) -> Table:
    """One row a target."""
    table = Table("target", "inputs", "refused", "edges", "slowest s", "faults", title="Files")
    for report in reports:
        shown = (f"{report.get(key, 0)}" for key in ("inputs", "refused", "edges"))
        slowest = f"{report.get('slowest_seconds', 0):.2f}"
        table.add_row(report["target"], *shown, slowest, str(len(report["faults"])))
    return table


def main() -> None:
    """Read the command line, run, print, write, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", help=f"some of {', '.join(TARGETS)}; all without")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual numbers of inputs")
    parser.add_argument("--seconds", type=int, default=600, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "campaigns" / "files.json")
    given = parser.parse_args()
    unknown = set(given.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {min(unknown)}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    reports: list[dict[str, Any]] = []
    for name in given.targets or TARGETS:
        reports.append(run_target(name, given.share, given.seconds, given.seed))
        last = reports[-1]
        CONSOLE.print(f"{name}: {last['inputs']} inputs in {last['seconds']} s", highlight=False)
        for fault in last["faults"]:
            CONSOLE.print(f"  {fault['what']} {fault['where']}", style="red", markup=False)
        total = sum(report["inputs"] for report in reports)
        whole = {"inputs": total, "python": platform.python_version(), "targets": reports}
        save(whole, given.out)
    CONSOLE.print(table_of(reports))
    raise SystemExit(1 if any(report["faults"] for report in reports) else 0)


if __name__ == "__main__":
    main()
