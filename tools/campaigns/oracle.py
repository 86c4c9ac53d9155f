"""What has to be true of every input: only our own errors, soon, in little memory, nothing outside.

A judge runs one target over many inputs and keeps what was wrong, each kind of fault once.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blockllm.errors import BlockllmError

MAX_SECONDS = 1.0  # of processor time for one input
MAX_GROWTH = 96 << 20  # bytes of resident memory between the first fifth of a run and its end
LOOK_EACH = 2048  # inputs between two looks at memory
MAX_FAULTS = 20  # kinds that are kept
MAX_KEPT = 4096  # bytes of an input that stands in a report
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PATHS = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate")
_NEVER = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "pty.spawn",
)


class Target(NamedTuple):
    """One reader to feed. `seeds` are intact inputs; `run` reads one input and may raise our own
    errors; `limit` bounds an input's length in bytes; `may` names further things that it may do, by
    Python's audit events."""

    seeds: tuple[bytes, ...]
    run: Callable[[bytes], None]
    limit: int = 4096
    may: tuple[str, ...] = ()


class Fault(NamedTuple):
    """Something that must not happen, the first input that did it, and how often it came."""

    what: str
    where: str
    data: bytes
    count: int = 1


class Judge:
    """Runs inputs through a target. Everything is written below `scratch` or is a fault."""

    def __init__(self, target: Target, scratch: Path) -> None:
        self._run, self._may = target.run, target.may
        self._scratch = str(scratch.resolve())
        self.inputs = self.refused = 0
        self.slowest = 0.0  # seconds
        self.faults: dict[tuple[str, str], Fault] = {}
        self._outside: list[str] = []
        self._is_watching = False
        self._early = self._now = resident()

    def __call__(self, data: bytes) -> None:
        """Run one input."""
        self.inputs += 1
        start = time.process_time()
        try:
            with self._watching():
                self._run(data)
        except BlockllmError:
            self.refused += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # panics of libraries are no Exception
            self._book(f"{type(error).__name__}: {error!s:.200}", _place(error), data)
        seconds = time.process_time() - start
        self.slowest = max(self.slowest, seconds)
        if seconds > MAX_SECONDS:
            self._book(f"took more than {MAX_SECONDS:g} s", "", data)
        for what in self._outside:
            self._book(what, "", data)
        self._outside.clear()
        if self.inputs % LOOK_EACH == 0:
            gc.collect()
            self._now = resident()

    def settle(self) -> None:
        """What memory is compared with from now on: caches are full."""
        gc.collect()
        self._early = self._now = resident()

    def report(self) -> dict[str, Any]:
        """Counts and faults as plain data."""
        growth = self._now - self._early
        faults = [
            {**fault._asdict(), "data": base64.b64encode(fault.data[:MAX_KEPT]).decode()}
            for fault in self.faults.values()
        ]
        if growth > MAX_GROWTH:
            grown = f"memory grew by {growth >> 20} MiB"
            faults.append({"what": grown, "where": "", "data": "", "count": 1})
        return {
            "inputs": self.inputs,
            "refused": self.refused,
            "slowest_seconds": round(self.slowest, 3),
            "grown_mib": round(growth / 2**20, 1),
            "faults": faults,
        }

    def watch(self) -> None:
        """Notice writes outside of the scratch folder, other processes and connections, from now
        on and for good: Python offers no way back."""
        sys.addaudithook(self._audit)

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        self._is_watching = True
        try:
            yield
        finally:
            self._is_watching = False

    def _audit(self, event: str, details: tuple[Any, ...]) -> None:
        if not self._is_watching:
            return
        if event in _NEVER and event not in self._may:
            self._outside.append(f"did {event}")
        elif event == "open" and isinstance(details[2], int) and details[2] & _WRITES:
            self._check(event, details[0])
        elif event in _PATHS:
            folder = details[1] if event in ("os.remove", "os.rmdir") else -1
            self._check(event, details[0], folder)

    def _check(self, event: str, path: object, folder: int = -1) -> None:
        """Book a path outside; a relative one counts from the open `folder`."""
        if isinstance(path, bytes | str | os.PathLike):
            start = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
            place = os.path.normpath(os.path.join(start, os.fsdecode(path)))
            if place != os.devnull and not place.startswith(self._scratch + os.sep):
                self._outside.append(f"{event} outside: {place[:80]}")

    def _book(self, what: str, where: str, data: bytes) -> None:
        key = what.partition(":")[0], where
        if key in self.faults:
            known = self.faults[key]
            shorter = data if len(data) < len(known.data) else known.data
            self.faults[key] = known._replace(count=known.count + 1, data=shorter)
        elif len(self.faults) < MAX_FAULTS:
            self.faults[key] = Fault(what, where, data)


def resident(process: int | str = "self") -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def save(report: object, path: Path) -> None:
    """Write JSON whole or not at all."""
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def _place(error: BaseException) -> str:
    """Where an error came from: the last line of our package, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/blockllm/" in frame.filename] or list(frames)
    shown = (ours[-1], frames[-1]) if frames else ()
    places = (f"{_short(frame.filename)}:{frame.lineno} {frame.name}" for frame in shown)
    return " < ".join(dict.fromkeys(places))


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-3:])
