"""OpenVINO GenAI's continuous batching behind the completion API.

    ENV/bin/python -m blockllm.bench.openvino_server --port 8000 name=folder …

It runs in an environment of its own that has openvino-genai, tokenizers, aiohttp and msgspec; the
folders are what `optimum-cli export openvino` writes, with the checkpoint's tokenizer.json.
"""

from __future__ import annotations

import asyncio
import queue
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from blockllm.bench.peer_server import Job, options, read_folders, serve


class ContinuousBatches:
    """One pipeline per model, all driven by one thread."""

    def __init__(
        self, folders: dict[str, str], threads: int, precision: str, cache_gib: int, max_rows: int
    ) -> None:
        """`precision`: of computing, "f32" or "bf16"; keys and values follow it. `cache_gib`: KV
        pages of each model; `max_rows`: token rows of one step."""
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size, scheduler.max_num_batched_tokens = cache_gib, max_rows
        scheduler.enable_prefix_caching = False  # every arm of a comparison gets new prompts
        settings = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision}
        if threads:
            settings |= {"INFERENCE_NUM_THREADS": str(threads)}
        pipeline: Any = openvino_genai.ContinuousBatchingPipeline
        self._pipelines = {
            name: pipeline(folder, scheduler, "CPU", settings) for name, folder in folders.items()
        }
        self._tokenizers = {
            name: Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
            for name, folder in folders.items()
        }
        self._arrived: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._running: dict[int, tuple[Job, Any]] = {}  # request number → job, handle
        self._number = 0

    def decode(self, model: str, tokens: list[int]) -> str:
        """The text of these token ids. Raises KeyError if there is no such model."""
        text: str = self._tokenizers[model].decode(tokens)
        return text

    def submit(self, job: Job) -> None:
        """Hand a job to the thread that steps."""
        self._arrived.put(job)

    async def work(self) -> None:
        """Step all pipelines that have requests, on a thread."""
        await asyncio.to_thread(self._drive, asyncio.get_running_loop())

    def _drive(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            if not self._running:
                self._start(self._arrived.get())
            while not self._arrived.empty():
                self._start(self._arrived.get())
            for pipeline in self._pipelines.values():
                if pipeline.has_non_finished_requests():
                    pipeline.step()
            for number in list(self._running):
                self._deliver(number, loop)

    def _start(self, job: Job) -> None:
        import numpy
        import openvino
        import openvino_genai

        wanted = openvino_genai.GenerationConfig()
        wanted.max_new_tokens, wanted.ignore_eos, wanted.do_sample = (
            job.body.max_tokens,
            True,
            False,
        )
        prompt = openvino.Tensor(numpy.array([job.body.prompt], numpy.int64))  # [1, tokens]
        self._number += 1
        handle = self._pipelines[job.body.model].add_request(self._number, prompt, wanted)
        self._running[self._number] = (job, handle)

    def _deliver(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        job, handle = self._running[number]
        while handle.can_read():
            for output in handle.read().values():
                for token in output.generated_ids:
                    loop.call_soon_threadsafe(job.tokens.put_nowait, int(token))
                if str(output.finish_reason).rpartition(".")[2] != "NONE":
                    loop.call_soon_threadsafe(job.tokens.put_nowait, None)
                    self._running.pop(number, None)


def main() -> None:
    """Read the command line and serve."""
    parser = options("OpenVINO GenAI behind HTTP.")
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    parser.add_argument("--cache-gib", type=int, default=1)
    parser.add_argument("--max-rows", type=int, default=2048)
    chosen = parser.parse_args()
    backend = ContinuousBatches(
        read_folders(chosen.models),
        chosen.threads,
        chosen.precision,
        chosen.cache_gib,
        chosen.max_rows,
    )
    asyncio.run(serve(backend, chosen.port))


if __name__ == "__main__":
    main()
