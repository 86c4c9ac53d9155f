"""The server under faults: its processes, what they hold, and how it is started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tools.demo.server import free_port, is_ready

KEYS = {"first": "key-of-the-first", "second": "key-of-the-second", "third": "key-of-the-third"}
START_SECONDS = 60.0
SETTINGS = {
    "DTYPE": "float32", "MEMORY": "64MiB", "THREADS": "1", "LOG_LEVEL": "warning",
    "HANG_TIMEOUT": "1.5", "HEAD_TIMEOUT": "3", "BODY_TIMEOUT": "3", "READER_TIMEOUT": "3",
    "DRAIN_TIMEOUT": "5", "MAX_CONNECTIONS": "256",
}  # fmt: skip


class System:
    """One server at a time, in folders of its own: `zoo`, `tmp` for its sockets, `log`."""

    def __init__(self, folder: Path, zoo: Path) -> None:
        self.zoo, self.folder, self.tmp = zoo, folder, folder / "tmp"
        self.tmp.mkdir()
        self.keys = folder / "keys"
        self.keys.write_text("".join(f"{tenant}:{key}\n" for tenant, key in KEYS.items()))
        self.port = free_port()
        self.log = (folder / "log").open("ab")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = dict(os.environ)
        environment |= {f"BLOCKLLM_{name}": value for name, value in SETTINGS.items()}
        environment |= {"BLOCKLLM_API_KEY_FILE": str(self.keys), "TMPDIR": str(self.tmp)}
        words = ("serve", "--zoo", str(self.zoo), "--port", str(self.port))
        command = (sys.executable, "-m", "blockllm", *words)
        process = subprocess.Popen(
            command, env=environment, stdout=self.log, stderr=self.log, start_new_session=True
        )
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(self.port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise SystemExit(f"the server did not start: {self.said()[-2000:]}")
            time.sleep(0.05)
        return process

    def start_again(self) -> None:
        """After the server has ended."""
        self.process = self._start()

    def end(self) -> int:
        """Ask the whole process group to stop; the exit status."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def said(self) -> str:
        """What the processes wrote."""
        return (self.folder / "log").read_text("utf-8", "replace")

    def children(self, word: str = "") -> list[int]:
        """Live processes that the server started whose command line has a word."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.Error):
                    if child.status() != psutil.STATUS_ZOMBIE and word in " ".join(child.cmdline()):
                        found.append(child.pid)
        return found

    def agent(self) -> int | None:
        """The agent process, if one runs."""
        return next(iter(self.children("agent_main")), None)

    def held(self) -> dict[str, int]:
        """What must not grow: descriptors of the server, processes, zombies, temporary files."""
        server = psutil.Process(self.process.pid)
        states = [child.status() for child in server.children(recursive=True)]
        return {
            "descriptors": server.num_fds(),
            "processes": len(states) - states.count(psutil.STATUS_ZOMBIE),
            "zombies": states.count(psutil.STATUS_ZOMBIE),
            "temporary files": len(list(self.tmp.iterdir())),
        }
