"""transformers' `generate` behind the completion API: the simplest way to serve a model.

    python -m blockllm.bench.transformers_server --port 8000 name=folder …

Requests for one model that wait at the same time form a static batch, padded to its longest
prompt and run to its longest output; new requests wait until it has ended.
"""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from blockllm.bench.peer_server import Job, options, read_folders, serve


class BatchStream:
    """What `generate` is given as streamer: hands each step's tokens to their jobs at once."""

    def __init__(self, jobs: list[Job], loop: asyncio.AbstractEventLoop) -> None:
        self._jobs, self._loop = jobs, loop
        self._step = -1  # the first call brings the prompts

    def put(self, value: torch.Tensor) -> None:
        """Token ids of one step, one per job."""
        if self._step >= 0:
            self._loop.call_soon_threadsafe(self._deliver, self._step, value.tolist())
        self._step += 1

    def _deliver(self, step: int, tokens: list[int]) -> None:
        for job, token in zip(self._jobs, tokens, strict=True):
            if step < job.body.max_tokens:
                job.tokens.put_nowait(token)
            if step + 1 == job.body.max_tokens:
                job.tokens.put_nowait(None)

    def end(self) -> None:
        """Every job got its end with its last token."""


class StaticBatches:
    """All models, one batch at a time."""

    def __init__(self, folders: dict[str, str], dtype: str, max_batch: int) -> None:
        import transformers

        logging: Any = transformers.utils.logging
        logging.disable_progress_bar()
        model_class: Any = transformers.AutoModelForCausalLM
        tokenizer_class: Any = transformers.AutoTokenizer
        self._models = {
            name: model_class.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
            for name, folder in folders.items()
        }
        self._tokenizers = {
            name: tokenizer_class.from_pretrained(folder) for name, folder in folders.items()
        }
        for model in self._models.values():
            model.generation_config.eos_token_id = None  # every request runs to its length
        self._max_batch = max_batch
        self._waiting: list[Job] = []
        self._arrived = asyncio.Event()

    def decode(self, model: str, tokens: list[int]) -> str:
        """The text of these token ids. Raises KeyError if there is no such model."""
        text: str = self._tokenizers[model].decode(tokens, skip_special_tokens=True)
        return text

    def submit(self, job: Job) -> None:
        """Add a job to those that wait for a batch."""
        self._waiting.append(job)
        self._arrived.set()

    async def work(self) -> None:
        """Run the jobs that wait for the oldest job's model as one batch, again and again."""
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            name = self._waiting[0].body.model
            alike = [job for job in self._waiting if job.body.model == name]
            jobs = alike[: self._max_batch]
            self._waiting = [job for job in self._waiting if job not in jobs]
            if not self._waiting:
                self._arrived.clear()
            await asyncio.to_thread(self._generate, name, jobs, BatchStream(jobs, loop))

    def _generate(self, name: str, jobs: list[Job], stream: BatchStream) -> None:
        longest = max(len(job.body.prompt) for job in jobs)
        steps = max(job.body.max_tokens for job in jobs)
        padding = [longest - len(job.body.prompt) for job in jobs]
        ids = [[0] * pad + job.body.prompt for job, pad in zip(jobs, padding, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        with torch.inference_mode():
            self._models[name].generate(
                torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=steps,
                min_new_tokens=steps,
                do_sample=False,
                pad_token_id=0,
                streamer=stream,
            )


def main() -> None:
    """Read the command line and serve."""
    parser = options("transformers' generate behind HTTP.")
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    backend = StaticBatches(read_folders(chosen.models), chosen.dtype, chosen.max_batch)
    asyncio.run(serve(backend, chosen.port))


if __name__ == "__main__":
    main()
