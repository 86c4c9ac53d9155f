"""`make demo`: the demo family from checkpoints to answers, and what sharing its blocks is worth.

Builds a zoo, starts the server, asks every model at once through the OpenAI client, compares a
mixed batch with one model after another, prints what it saw, stops, and exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from tools.demo_measure import Measured, measure
from tools.demo_tables import answers_table, measured_table, zoo_table

ROOT = Path(__file__).resolve().parent.parent
FAMILY = ROOT / "demo"
MODELS = {"base": None, "frozen-lower": None, "full": None, "lora-a": "base", "lora-b": "base"}
CONSOLE = Console()


def build_zoo(folder: Path) -> None:
    """Add every member of the family, from scratch, and show what each one stored."""
    from blockllm.zoo import Zoo

    shutil.rmtree(folder, ignore_errors=True)
    zoo = Zoo(folder)
    reports = [zoo.add(name, FAMILY / name, base=base) for name, base in MODELS.items()]
    cards = {card.name: card for card in zoo.cards()}
    CONSOLE.print(zoo_table([(report, cards[report.name]) for report in reports]))


def free_port() -> int:
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
    from urllib.error import URLError
    from urllib.request import urlopen

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


async def ask_all(port: int, prompts: dict[str, str]) -> dict[str, str]:
    """One answer of every model, all requests in flight together."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:

        async def ask(model: str) -> str:
            answer = await client.completions.create(
                model=model,
                prompt=prompts[model],
                max_tokens=64,
                temperature=0.7,
                top_p=0.9,
                seed=3,
            )
            return answer.choices[0].text

        texts = await asyncio.gather(*(ask(model) for model in MODELS))
    return dict(zip(MODELS, texts, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--zoo", type=Path, default=ROOT / "out" / "demo-zoo")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--stay", action="store_true", help="keep serving until Ctrl-C")
    options = parser.parse_args()
    start = time.monotonic()
    build_zoo(options.zoo)
    port = options.port or free_port()
    server = start_server(options.zoo, port, options.stay)
    try:
        prompts = json.loads((FAMILY / "prompts.json").read_text(encoding="utf-8"))
        CONSOLE.print(answers_table(prompts, asyncio.run(ask_all(port, prompts))))
        measured: Measured = asyncio.run(measure(port, prompts))
        CONSOLE.print(measured_table(measured))
        if options.stay:
            CONSOLE.print(f"serving on http://127.0.0.1:{port}/v1 until Ctrl-C")
            server.wait()
            return
        stop_server(server)
    except KeyboardInterrupt:
        server.wait(timeout=60)
    finally:
        if server.poll() is None:
            server.kill()
    CONSOLE.print(f"done in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
