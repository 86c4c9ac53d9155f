"""What it costs that texts are read in worker processes: the same calls here and there, in turn.

`python -m tools.studies.measure_workers [--calls 3000]`
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from blockllm.api import text_calls, wire
from blockllm.api.text import content_of
from blockllm.workers.call import Call
from blockllm.workers.inline import InProcess
from blockllm.workers.pool import Pool
from blockllm.zoo.text.files import TOKENIZER
from tools.demo import FAMILY

FOLDER = FAMILY / "base"
TEXT = "def read(path):\n    return open(path).read()\n" * 8  # about 350 characters


async def measure(calls: dict[str, Call[list[int]]], count: int) -> dict[str, list[list[float]]]:
    """Milliseconds of each call in process and in a worker, sorted."""
    here, pool = InProcess(text_calls.TASKS), Pool(text_calls.TASKS, 2)
    await pool.start()
    found: dict[str, list[list[float]]] = {name: [[], []] for name in calls}
    try:
        for number in range(count):
            for name, call in calls.items():
                start = time.perf_counter()
                expected = here.call(call)
                middle = time.perf_counter()
                assert await pool.run(call) == expected
                end = time.perf_counter()
                if number >= count // 10:  # the first ones read files
                    found[name][0].append((middle - start) * 1e3)
                    found[name][1].append((end - middle) * 1e3)
    finally:
        await pool.close()
    return {name: [sorted(times) for times in both] for name, both in found.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--model", type=Path, default=FOLDER, help="a folder with a tokenizer")
    given = parser.parse_args()
    names = (TOKENIZER, "tokenizer_config.json", "chat_template.jinja")
    files = {name: given.model / name for name in names if (given.model / name).exists()}
    content = content_of(files, "llama")
    calls = {"a text": text_calls.encode_call(content, TEXT, True, "prompt")}
    if content.template:
        messages = [wire.Message("user", TEXT)]
        calls["a conversation"] = text_calls.chat_call(content, messages, {})
    found = uvloop.run(measure(calls, given.calls))
    table = Table("milliseconds, p50 / p99", "in process", "in a worker", "more at p50", "at p99")
    for name, both in found.items():
        at = [[times[int(share * (len(times) - 1))] for share in (0.5, 0.99)] for times in both]
        more = [there - here for here, there in zip(*at, strict=True)]
        cells = [" / ".join(f"{value:.3f}" for value in pair) for pair in at]
        table.add_row(name, *cells, *(f"{value:.3f}" for value in more))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
