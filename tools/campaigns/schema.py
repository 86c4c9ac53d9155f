"""The server's OpenAPI document against the server: valid and invalid data of every operation."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.campaigns.oracle import MAX_GROWTH, save
from tools.campaigns.script import KEY
from tools.campaigns.server import Served, serving

MAX_SHOWN = 20
LONG = 300  # characters of a line of output, which holds a whole body then
MODELS = {"enum": ["base", "tuned"]}
# what the schema allows and the answer still refuses is for limits that a schema cannot say
EXCLUDED = "positive_data_acceptance"


def run_schema(seconds: int, seed: int) -> dict[str, Any]:
    """Let schemathesis ask for so long; the report."""
    with tempfile.TemporaryDirectory() as made, serving(Path(made)) as served:
        start, expected, before = time.monotonic(), served.ordinary(), served.memory()
        events = Path(made) / "events.ndjson"
        output = _ask(served, events, seconds, seed)
        again, after, metrics = served.ordinary(), served.memory(), served.metrics()
        took, errors = time.monotonic() - start, served.errors()
        statuses, checks = _count(_read(events))
    faults = [*(f"{name}: {count}" for name, count in checks.items()), *errors[:MAX_SHOWN]]
    for is_wrong, what in (
        (again != expected, f"an ordinary answer is {again}, not {expected}"),
        (metrics.restarts > 0, f"the agent was restarted {metrics.restarts:.0f} times"),
        (after - before > MAX_GROWTH, f"memory grew from {before} to {after}"),
        (not statuses, "nothing was asked"),
    ):
        faults += [what] if is_wrong else []
    return {
        "inputs": sum(statuses.values()),
        "seed": seed,
        "seconds": round(took, 1),
        "statuses": dict(sorted(statuses.items())),
        "memory_mib": [round(size / 2**20, 1) for size in (before, after)],
        "output": output[-20000:],
        "faults": [{"count": 1, "what": what, "where": ""} for what in faults],
    }


def narrowed(document: Any) -> Any:
    """The document with the models that are served, so that valid data is answered and not refused
    for its model. Streams are checked elsewhere."""
    for operation in (each for path in document["paths"].values() for each in path.values()):
        operation["responses"]["200"]["content"].get("text/event-stream", {}).pop("schema", None)
    for schema in document["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if "model" in properties:
            properties["model"] = {**properties["model"], "allOf": [MODELS]}
    return document


def _ask(served: Served, events: Path, seconds: int, seed: int) -> str:
    document = events.with_name("openapi.json")
    save(narrowed(served.ask("/openapi.json")), document)
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(document)),
        *("--url", f"http://127.0.0.1:{served.port}"),
        *("--header", f"Authorization: Bearer {KEY.decode()}"),
        *("--max-time", str(seconds), "--seed", str(seed), "--mode", "all"),
        *("--exclude-checks", EXCLUDED, "--continue-on-failure", "--no-shrink"),
        *("--request-timeout", "30", "--generation-database", "none", "--no-color"),
        *("--suppress-health-check", "all", "--warnings", "off"),
        *("--report", "ndjson", "--report-ndjson-path", str(events)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=events.parent)
    lines = (done.stdout + done.stderr).splitlines()
    return "\n".join(line for line in lines if len(line) <= LONG)


def _read(events: Path) -> Iterator[Any]:
    if events.exists():
        for line in events.read_text("utf-8").splitlines():
            yield json.loads(line)


def _count(events: Iterator[Any]) -> tuple[Counter[str], Counter[str]]:
    """Statuses of all answers, and failed checks by operation."""
    statuses: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for event in events:
        for value in _parts(event):
            if "status_code" in value and "elapsed" in value:
                statuses[str(value["status_code"])] += 1
            if value.get("status") == "failure" and "name" in value:
                failed[str(value["name"])] += 1
    return statuses, failed


def _parts(value: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a value."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _parts(part)
