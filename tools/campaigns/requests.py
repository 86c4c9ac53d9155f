"""Campaigns over requests: damaged bytes on connections, and data that follows the API's schema.

    python -m tools.campaigns.requests bytes      # in one process, on a clock that jumps
    python -m tools.campaigns.requests sockets    # the same scripts on sockets of a real server
    python -m tools.campaigns.requests schema     # valid and invalid data of every operation

Exit status 1 if an answer is not as it has to be.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from tools.campaigns.mutate import inputs
from tools.campaigns.oracle import Judge, save
from tools.campaigns.schema import run_schema
from tools.campaigns.sockets import run_sockets
from tools.campaigns.targets import make

CONSOLE = Console()
ROOT = Path(__file__).parents[2]
TELL_EACH = 20_000  # inputs


def run_bytes(count: int, seed: int) -> dict[str, Any]:
    """Play scripts in this process; the report."""
    with tempfile.TemporaryDirectory() as made:
        scratch = Path(made)
        target = make("connection", scratch)
        judge = Judge(target, scratch)
        start = time.monotonic()
        for data in inputs(target, seed, count):
            judge(data)
            if judge.inputs == count // 5:
                judge.settle()
            if judge.inputs % TELL_EACH == 0:
                CONSOLE.print(f"{judge.inputs} connections, {len(judge.faults)} kinds of faults")
        return {"seed": seed, "seconds": round(time.monotonic() - start, 1), **judge.report()}


# what runs a campaign, and how many inputs it has unless told otherwise
CAMPAIGNS = {
    "bytes": (run_bytes, 1_000_000),
    "sockets": (run_sockets, 20_000),
    "schema": (run_schema, 600),  # seconds
}


def main() -> None:
    """Read the command line, run, write, and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("campaign", choices=list(CAMPAIGNS))
    parser.add_argument("--inputs", type=int, help="connections, or seconds of the schema's")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    out = given.out or ROOT / "out" / "campaigns" / f"requests-{given.campaign}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    run, usual = CAMPAIGNS[given.campaign]
    report = run(given.inputs or usual, given.seed)
    save(report, out)
    for fault in report["faults"]:
        CONSOLE.print(f"{fault['count']} times: {fault['what']} {fault['where']}", markup=False)
    CONSOLE.print({name: value for name, value in report.items() if name != "faults"})
    raise SystemExit(1 if report["faults"] else 0)


if __name__ == "__main__":
    main()
