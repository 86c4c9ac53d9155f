"""What a measurement ran on, and what its processes hold in memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

_PACKAGES = ("blockllm", "torch", "transformers", "numpy", "aiohttp")


def machine_facts() -> dict[str, str | int]:
    """Processor, cores, memory, versions and time, for the record. No host names."""
    facts: dict[str, str | int] = {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _field(file: str, name: str) -> str:
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


class Ticks(NamedTuple):
    """Processor time of all cores since the system's start: `wanted` by anything that runs on it,
    and `stolen`: the part of this that a virtual machine's host has given to other machines."""

    wanted: int
    stolen: int


def processor_ticks() -> Ticks:
    """Zeros where the kernel does not tell."""
    try:
        line = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0]
        user, nice, system, _idle, _waiting, hard, soft, stolen = map(int, line.split()[1:9])
    except (OSError, IndexError, ValueError):
        return Ticks(0, 0)
    return Ticks(user + nice + system + hard + soft + stolen, stolen)


def stolen_share(before: Ticks, after: Ticks) -> float:
    """Of the processor time wanted between the two, what the host has given to others."""
    return (after.stolen - before.stolen) / max(after.wanted - before.wanted, 1)


class Memory(NamedTuple):
    """Bytes of some processes. `pss`: pages shared with others count in parts, so that the sum
    over all processes of the machine is what is used; `rss`: they count in full; `own`: pages that
    no other process maps (`Pss_Anon`), without mapped files."""

    pss: int
    rss: int
    own: int


def memory_of(groups: Iterable[int]) -> Memory:
    """Of all processes in the process groups; one that ends meanwhile counts as nothing."""
    wanted = set(groups)
    found = [_memory_of(pid) for pid in _processes() if _group(pid) in wanted]
    return (
        Memory(*(sum(values) for values in zip(*found, strict=True))) if found else Memory(0, 0, 0)
    )


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def _memory_of(pid: int) -> Memory:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return _resident(pid)
    words = (line.split() for line in lines[1:])
    kilobytes = {row[0].rstrip(":"): int(row[1]) for row in words}
    pss, rss = kilobytes.get("Pss", 0), kilobytes.get("Rss", 0)
    return Memory(pss * 1024, rss * 1024, kilobytes.get("Pss_Anon", pss) * 1024)


def _resident(pid: int) -> Memory:
    """Where the kernel does not tell more: resident pages for everything."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1])
    except (OSError, IndexError):
        return Memory(0, 0, 0)
    size = pages * os.sysconf("SC_PAGE_SIZE")
    return Memory(size, size, size)
