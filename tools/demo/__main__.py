"""`make demo`: the demo family from checkpoints to answers, and what sharing its blocks is worth.

Builds a zoo, starts the server, asks every model at once through the OpenAI client, compares a
mixed batch with one model after another, prints what it saw, stops, and exits with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

from rich.console import Console

from tools.demo import FAMILY, MODELS, ROOT
from tools.demo.measure import Measured, measure
from tools.demo.server import free_port, start_server, stop_server
from tools.demo.tables import answers_table, measured_table
from tools.demo.zoo import build_zoo

CONSOLE = Console()


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
