"""Starts `blockllm serve` in a process of its own, with the fake zoo and the fake agent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import msgspec

from blockllm.cli.serve import run_server
from blockllm.config import EngineSettings, ServerSettings
from blockllm.errors import BlockllmError
from tests.api.family import FakeZoo
from tests.cluster.fake_agent import COMMAND, ROOT

WORKER = "blockllm.workers.main"
PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.api.serving import run; run()"


def run() -> None:
    """Arguments: folder of the zoo, its name for the agent, ServerSettings as JSON."""
    folder, zoo, text = sys.argv[1:]
    settings = msgspec.json.decode(text, type=ServerSettings)
    try:
        opened = contextlib.nullcontext(FakeZoo(Path(folder)))
        run_server(lambda: opened, zoo, None, EngineSettings(), settings, COMMAND)
    except BlockllmError as error:
        sys.exit(f"error: {error}")


def children_of(pid: int, word: str, without: bool = False) -> list[int]:
    """Child processes that have, or have not, a word in their command line."""
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(child) for each in lists for child in each]
    return [child for child in children if (word in _command(child)) is not without]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it has ended
        return ""


class RunningServer:
    """A server process; `url` once it is ready."""

    def __init__(self, folder: Path, zoo: str, wait: bool, **settings: object) -> None:
        values = msgspec.json.encode({"port": 0, "log_level": "info", **settings}).decode()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder / "zoo"), zoo, values],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said: list[str] = []
        self.logged: list[str] = []
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self.logged.extend, args=(self.process.stderr,))
        self._reader.start()
        self.url = self._wait_for_address() if wait else ""
        self.client = httpx2.Client(base_url=self.url, timeout=10)

    def _wait_for_address(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line.strip())
            if " ready on " in line:
                return line.split()[-1]
        return ""

    def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        return self.client.post(path, json=body, headers=headers)

    def get(self, path: str, **headers: str) -> httpx2.Response:
        return self.client.get(path, headers=headers)

    def metric(self, name: str) -> float:
        """Sum over all labels of one metric."""
        lines = self.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith((name + " ", name + "{"))]
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def wait_until(self, name: str, value: float) -> None:
        deadline = time.monotonic() + 15
        while self.metric(name) != value:
            assert time.monotonic() < deadline, f"{name} is {self.metric(name)}, not {value}"
            time.sleep(0.02)

    def has_agent(self) -> bool:
        return bool(children_of(self.process.pid, WORKER, without=True))

    def agent_pid(self) -> int:
        return children_of(self.process.pid, WORKER, without=True)[0]

    def worker_pids(self) -> list[int]:
        return children_of(self.process.pid, WORKER)

    def cpu_seconds(self) -> float:
        """CPU time of the HTTP process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait; the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        return self.wait()

    def wait(self) -> int:
        self.client.close()
        status = self.process.wait(20)
        self._reader.join()
        assert self.process.stdout is not None and self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return status


@contextlib.contextmanager
def running(
    folder: Path, zoo: str = "fake", wait: bool = True, **settings: object
) -> Iterator[RunningServer]:
    server = RunningServer(folder, zoo, wait, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.wait()
