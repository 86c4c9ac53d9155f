"""What the soak test watches: memory of the processes, the server's metrics, and the verdict."""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

MB = 1e6
# memory is flat when it grew by less than either between the second and the last fifth
FLAT_BYTES = 8 * MB
FLAT_SHARE = 0.02
ENOUGH_SAMPLES = 20  # to say anything about memory


class Metrics(NamedTuple):
    """The numbers of /metrics that the books are judged by."""

    running: float
    waiting: float
    used_pages: float
    cached_pages: float
    restarts: float
    preemptions: float
    errors: float
    turns: float

    @property
    def is_idle(self) -> bool:
        return not (self.running or self.waiting or self.used_pages)


class Sample(NamedTuple):
    """One look at the processes; `rss` is in bytes, `latency` the seconds of whole answers since
    the look before, by percentile."""

    requests: int
    seconds: float
    rss: dict[str, int]
    descriptors: dict[str, int]
    latency: dict[int, float]
    metrics: Metrics


class Trend(NamedTuple):
    """How one process's memory developed, in MB."""

    process: str
    median_second_fifth: float
    median_last_fifth: float
    slope_last_third: float  # MB per 1000 requests
    largest: float

    @property
    def is_flat(self) -> bool:
        grown = self.median_last_fifth - self.median_second_fifth
        return grown * MB < max(FLAT_BYTES, FLAT_SHARE * self.median_second_fifth * MB)


def read_metrics(text: str) -> Metrics:
    """From the Prometheus page."""
    values: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            state = sample.labels.get("state") or sample.labels.get("finished_reason")
            name = f"{sample.name}:{state}" if state else sample.name
            values[name] = values.get(name, 0.0) + sample.value
    return Metrics(
        running=values["blockllm_num_requests_running"],
        waiting=values["blockllm_num_requests_waiting"],
        used_pages=values["blockllm_pages:used"],
        cached_pages=values["blockllm_pages:cached"],
        restarts=values["blockllm_agent_restarts_total"],
        preemptions=values["blockllm_num_preemptions_total"],
        errors=values.get("blockllm_request_success_total:error", 0.0),
        turns=values["blockllm_turns_total"],
    )


def resident(server: int) -> dict[str, int]:
    """Resident bytes of the HTTP process and of its agent process."""
    return {"server": _status(server), "agent": sum(map(_status, children(server)))}


def descriptors(server: int) -> dict[str, int]:
    """Open files and sockets of the HTTP process and of its agent process."""
    return {"server": _open_files(server), "agent": sum(map(_open_files, children(server)))}


def children(pid: int) -> list[int]:
    """All processes that a process has started, and theirs; [] for one that is gone."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *children(int(child))]
    return found


def _status(pid: int) -> int:
    with contextlib.suppress(OSError):  # it may end meanwhile
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


def _open_files(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return 0


def trends(samples: list[Sample]) -> list[Trend]:
    """One per process; [] while there are too few samples."""
    if len(samples) < ENOUGH_SAMPLES:
        return []
    count, found = len(samples), []
    for process in samples[0].rss:
        sizes = [sample.rss[process] / MB for sample in samples]
        late = slice(2 * count // 3, None)
        thousands = [sample.requests / 1000 for sample in samples]
        slope = statistics.linear_regression(thousands[late], sizes[late]).slope
        found.append(
            Trend(
                process=process,
                median_second_fifth=statistics.median(sizes[count // 5 : 2 * count // 5]),
                median_last_fifth=statistics.median(sizes[4 * count // 5 :]),
                slope_last_third=slope,
                largest=max(sizes),
            )
        )
    return found
