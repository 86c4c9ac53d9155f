"""Starts, awaits and stops a server as a process of its own."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen


def free_port() -> int:
    """A port of the loopback interface that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(zoo: Path, port: int, stay: bool) -> subprocess.Popen[bytes]:
    """Start `blockllm serve` and wait until it is ready; its output is shown as it comes."""
    command = [sys.executable, "-m", "blockllm", "serve", "--zoo", str(zoo), "--port", str(port)]
    if not stay:
        command += ["--log-level", "warning"]
    server = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}")
        if is_ready(port):
            return server
        time.sleep(0.1)
    server.kill()
    raise SystemExit("the server was not ready within 120 s")


def is_ready(port: int) -> bool:
    """Whether the server on this port says that it can answer."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def stop_server(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to drain; it must end by itself, with status 0."""
    server.send_signal(signal.SIGTERM)
    if server.wait(timeout=60) != 0:
        raise SystemExit(f"the server ended with status {server.returncode}")
