"""A server process of ours: start, wait until it answers, freeze, thaw, stop with its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from blockllm.bench.launch import Launch
from blockllm.errors import BlockllmError

_STOP_SECONDS = 20.0  # to drain; then the whole process group is killed
_SHOWN_LINES = 15  # of the log, in an error


class ServerProcess:
    """One launched server in a process group of its own; its output goes to `log`."""

    def __init__(self, launch: Launch, log: Path) -> None:
        """Raises BlockllmError when the command cannot be run."""
        port = _free_port()
        launch = launch.on_port(port)
        self.url = f"http://127.0.0.1:{port}"
        self.models = launch.models
        self._ready, self._log, self._command = launch.ready, log, launch.command
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            output.write((" ".join(launch.command) + "\n").encode())
            output.flush()
            try:
                self._process = subprocess.Popen(
                    launch.command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **launch.env},
                    start_new_session=True,
                )
            except OSError as error:
                raise BlockllmError(f"cannot run {launch.command[0]}: {error}") from error

    @property
    def group(self) -> int:
        """Id of the process group."""
        return self._process.pid

    def wait_ready(self, timeout: float) -> None:
        """Until the ready path answers 200. Raises BlockllmError with the end of the log."""
        deadline = time.monotonic() + timeout
        while not self._answers():
            if self._process.poll() is not None:
                raise self._error(f"ended with status {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._error(f"was not ready within {timeout:.0f} s")
            time.sleep(0.1)

    def check_alive(self) -> None:
        """Raise BlockllmError with the end of the log if the process has ended."""
        if self._process.poll() is not None:
            raise self._error(f"ended with status {self._process.returncode}")

    def _answers(self) -> bool:
        try:
            with urlopen(self.url + self._ready, timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def _error(self, what: str) -> BlockllmError:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        end = "\n".join(lines[-_SHOWN_LINES:])
        return BlockllmError(f"{self._command[0]} {what}; the end of {self._log}:\n{end}")

    def freeze(self) -> None:
        """No process of the group runs until `thaw`."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.group, number)

    def stop(self) -> None:
        """Ask the process to end, then kill whatever is left of its group."""
        self.thaw()
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        self._signal(signal.SIGKILL)
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
