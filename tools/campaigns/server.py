"""A real server of tiny models with short deadlines, for campaigns over sockets."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from blockllm.zoo import Zoo
from tools.campaigns.oracle import resident
from tools.campaigns.script import KEY
from tools.demo.server import free_port, is_ready, stop_server
from tools.soak.watch import Metrics, read_metrics

START_SECONDS = 180
SECONDS = 1  # of every deadline of a connection
ORDINARY = {
    "model": "tuned", "prompt": [7, 8, 9, 10], "max_tokens": 8, "temperature": 0,
    "return_token_ids": True,
}  # fmt: skip
_SETTINGS = {
    "HEAD_TIMEOUT": SECONDS, "BODY_TIMEOUT": SECONDS, "READER_TIMEOUT": SECONDS,
    "KEEP_ALIVE": SECONDS, "API_KEY": f"tenant:{KEY.decode()}", "DTYPE": "float32",
    "MEMORY": "64MiB", "THREADS": 1, "MAX_BODY_BYTES": 1 << 20, "LOG_LEVEL": "error",
}  # fmt: skip


class Served(NamedTuple):
    """A running server."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def ask(self, path: str, body: object = None) -> Any:
        """An ordinary request that must succeed; its answer as JSON or text."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"authorization": f"Bearer {KEY.decode()}", "content-type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read().decode()
        is_json = response.headers["content-type"].startswith("application/json")
        return json.loads(text) if is_json else text

    def ordinary(self) -> list[int]:
        """The tokens of a greedy answer."""
        tokens: list[int] = self.ask("/v1/completions", ORDINARY)["choices"][0]["token_ids"]
        return tokens

    def metrics(self) -> Metrics:
        """What the server counts."""
        return read_metrics(self.ask("/metrics"))

    def errors(self) -> list[str]:
        """What the server's processes logged as their own errors."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return [line for line in lines if " ERROR " in line or line.startswith("Traceback")]

    def memory(self) -> int:
        """Bytes of the HTTP process."""
        return resident(self.process.pid)


def build_zoo(folder: Path) -> Path:
    """A base with a tokenizer for all bytes and a chat template, and an adapter `tuned`."""
    from tests.api.family import TEMPLATE, byte_level_tokenizer
    from tests.makers import make_checkpoint, make_lora

    base = make_checkpoint(
        folder / "base", num_hidden_layers=2, vocab_size=400, max_position_embeddings=512
    )
    byte_level_tokenizer().save(str(base / "tokenizer.json"))
    settings = {"bos_token": {"content": "<s>"}, "chat_template": TEMPLATE}
    (base / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    zoo = Zoo(folder / "zoo")
    zoo.add("base", base)
    zoo.add("tuned", make_lora(base, folder / "tuned"), base="base")
    return folder / "zoo"


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Served]:
    """Start a server in a folder; it has to end by itself when asked to."""
    os.environ |= {f"BLOCKLLM_{name}": str(value) for name, value in _SETTINGS.items()}
    port, zoo, log = free_port(), build_zoo(folder), folder / "log"
    command = [sys.executable, "-m", "blockllm", "serve", "--zoo", str(zoo), "--port", str(port)]
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not is_ready(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start: {log.read_text('utf-8')[-2000:]}")
            time.sleep(0.1)
        yield Served(port, process, log)
        stop_server(process)
    finally:
        if process.poll() is None:
            process.kill()
