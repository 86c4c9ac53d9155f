"""What a model's first request costs while its weights are on disk: siblings, whole models, a peer.

    python -m tools.studies.measure_cold_start --family out/many --llama-server BIN/llama-server
        [--repeats 10 --out out/residency]

Before each request the model is unloaded and the files of all weights are put out of the system's
page cache, as far as no process has them mapped; what was left of them is reported. Bytes are those
that the processes had the disk read (/proc/PID/io). The base of each sibling is resident. Models
of each way follow one another, so that the ways are interleaved.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.request import Request, urlopen

from msgspec.structs import replace

from blockllm.bench.metrics import ttft
from tools.studies import page_cache
from tools.studies.drive import as_data, write_report
from tools.studies.make_many import Family, Model
from tools.studies.measure_residency import (
    Study,
    add_load_arguments,
    closed,
    open_study,
    packs,
    send,
    workload,
)
from tools.studies.measure_sharing import spread
from tools.studies.residency_servers import Admin, Running

ADMIN_KEY = "study"
WAYS = ("lora", "upper", "whole")
MB = 1e6


class Start(NamedTuple):
    """One cold request and the same one warm: seconds to the first token, bytes read from disk for
    the cold one, and bytes of weights left in the page cache when it was sent."""

    cold: float
    warm: float
    read: int
    left_cached: int

    @property
    def loading(self) -> float:
        """What the cold one took longer."""
        return self.cold - self.warm


def read_bytes(group: int) -> int:
    """What the processes of a group have had the disk read so far."""
    total = 0
    for process in Path("/proc").iterdir():
        with contextlib.suppress(ValueError, OSError):  # not a process, or one that has ended
            if os.getpgid(int(process.name)) == group:
                fields = (process / "io").read_text().split()
                total += int(fields[fields.index("read_bytes:") + 1])
    return total


class Server(NamedTuple):
    """A started arm, how it puts a model out of memory, and the files that models lie in."""

    running: Running
    unload: Callable[[str], None]
    files: list[Path]


@contextlib.contextmanager
def ours(study: Study, log: Path) -> Iterator[Server]:
    """All weights and pages fit."""
    flags = (*study.resident.flags, "--admin-key", ADMIN_KEY)
    arm = study.resident._replace(flags=flags)
    with Running(arm, log) as running:
        admin = Admin(running.process.url, ADMIN_KEY)
        yield Server(running, admin.unload, packs(study.family))


@contextlib.contextmanager
def peer(study: Study, log: Path) -> Iterator[Server]:
    """The router with room for every model."""
    with Running(study.router(len(study.family.models)), log) as running:
        url = running.process.url
        files = sorted({file for one in study.family.models for file in study.family.ggufs(one)})
        yield Server(running, lambda name: unload_from_router(url, name), files)


def unload_from_router(url: str, name: str) -> None:
    """Have the router end a model's process, and wait until it has."""
    body = json.dumps({"model": name}).encode()
    with urlopen(Request(url + "/models/unload", body), timeout=60) as answer:
        answer.read()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with urlopen(url + "/models", timeout=60) as answer:
            status = {one["id"]: one["status"]["value"] for one in json.load(answer)["data"]}
        if status[name] == "unloaded":
            return
        time.sleep(0.05)
    raise SystemExit(f"{name} is still {status[name]} a minute after it was unloaded")


class Clock:
    """Asks one server for first tokens; every prompt is a new one of the same length."""

    def __init__(self, server: Server, study: Study) -> None:
        self._server, self._asked = server, 0
        self._load = workload(study.family, study.options, 0)

    def first_token(self, name: str) -> float:
        """Seconds from sending to the first token. Raises SystemExit where there is none."""
        self._asked += 1
        asked = replace(self._load, models=(name,), prompt_length="32", output_length="2")
        sent = closed(replace(asked, seed=100_000 + self._asked), 1, 1)
        outcome = send(self._server.running, sent, 1).outcomes[0]
        seconds = ttft(outcome)
        if outcome.error or seconds is None:
            raise SystemExit(f"{name}: {outcome.error}: {outcome.detail}")
        return seconds

    def start(self, model: Model) -> Start:
        """One cold start beside a resident base, then a warm request."""
        server, group = self._server, self._server.running.process.group
        self.first_token(model.base)
        self.first_token(model.name)
        server.unload(model.name)
        _, left = page_cache.drop(server.files)
        before = read_bytes(group)
        cold = self.first_token(model.name)
        read = read_bytes(group) - before
        return Start(cold, self.first_token(model.name), read, left)


def chosen(family: Family, repeats: int) -> Iterator[tuple[str, Model]]:
    """So many models of each way, the ways in turn; again from the first when they are through."""
    by_way = {way: [one for one in family.models if one.way == way] for way in WAYS}
    for number in range(repeats):
        for way, models in by_way.items():
            if models:
                yield way, models[number % len(models)]


def measure(server: Server, study: Study, repeats: int) -> dict[str, list[Start]]:
    """Cold starts by the way that the model was made."""
    clock, found = Clock(server, study), dict[str, list[Start]]()
    for way, model in chosen(study.family, repeats):
        found.setdefault(way, []).append(clock.start(model))
    return found


def table(found: Mapping[str, Mapping[str, Sequence[Start]]]) -> str:
    """A row for each server and way: medians, least and largest; shares of a whole model's."""
    lines = [
        "| server | model | first token cold, ms | warm, ms | read, MB | left in cache, MB "
        "| bytes | loading time |",
        "|---" * 8 + "|",
    ]
    for server, ways in found.items():
        whole = ways["whole"]
        read, loading = (
            statistics.median(values)
            for values in ([one.read for one in whole], [one.loading for one in whole])
        )
        for way, starts in ways.items():
            cells = [
                spread([1000 * one.cold for one in starts], 0),
                spread([1000 * one.warm for one in starts], 0),
                spread([one.read / MB for one in starts], 1),
                spread([one.left_cached / MB for one in starts], 0),
                _share([one.read for one in starts], read),
                _share([one.loading for one in starts], loading),
            ]
            lines.append(f"| {server} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(values: Sequence[float], whole: float) -> str:
    return f"{statistics.median(values) / whole:.0%}" if whole > 0 else "-"


def compare(study: Study, options: argparse.Namespace) -> dict[str, dict[str, list[Start]]]:
    """Ours, and the router where there is one."""
    found = {}
    with ours(study, options.logs / "cold-ours.log") as server:
        found["blockllm"] = measure(server, study, options.repeats)
    if options.llama_server:
        with peer(study, options.logs / "cold-router.log") as server:
            found["llama.cpp's router"] = measure(server, study, options.repeats)
    return found


def main() -> None:
    """Read the command line, measure, print, write."""
    parser = argparse.ArgumentParser(description="First requests to models that are on disk.")
    add_load_arguments(parser)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    study = open_study(options)
    found = compare(study, options)
    print(table(found))
    report = {"starts": {server: as_data(ways) for server, ways in found.items()}}
    write_report(options, "cold-start.json", report)


if __name__ == "__main__":
    main()
