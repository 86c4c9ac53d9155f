"""transformers' `generate` behind the completion API: the simplest way to serve a model.

    python -m blockllm.bench.transformers_server --port 8000 name=folder …

Requests for one model that wait at the same time form a static batch, padded to its longest
prompt and run to its longest output; new requests wait until it has ended. Greedy only. Prompts
are token ids. It exists to be compared with.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import torch
from aiohttp import web


class Body(msgspec.Struct):
    """What is read of a request."""

    model: str
    prompt: list[int]
    max_tokens: int = 16


class Job(NamedTuple):
    """A request, and where its tokens go; None ends them."""

    body: Body
    tokens: asyncio.Queue[int | None]


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


class Server:
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

    async def work(self) -> None:
        """Take whoever waits for the oldest request's model, run them, again."""
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

    async def complete(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions, streamed."""
        body = msgspec.json.decode(await request.read(), type=Body)
        if body.model not in self._models:
            raise web.HTTPNotFound(text=f"no model {body.model!r}")
        job = Job(body, asyncio.Queue())
        self._waiting.append(job)
        self._arrived.set()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        given: list[int] = []
        text, said = "", 0
        while (token := await job.tokens.get()) is not None:
            given.append(token)
            text = self._tokenizers[body.model].decode(given, skip_special_tokens=True)
            until = said if text.endswith("\ufffd") else len(text)  # part of a character
            await _send(response, _choice(text[said:until], token_ids=[token]))
            said = until
        await _send(response, _choice(text[said:], finish_reason="length"))
        usage = {"prompt_tokens": len(body.prompt), "completion_tokens": len(given)}
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    async def health(self, request: web.Request) -> web.Response:
        """GET /health: the models are loaded before the port is taken."""
        return web.Response()


def _choice(text: str, **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": text, **more}]}


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")


async def serve(server: Server, port: int) -> None:
    """Until the process is ended."""
    app = web.Application()
    app.router.add_post("/v1/completions", server.complete)
    app.router.add_get("/health", server.health)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await server.work()


def read_folders(words: Iterable[str]) -> dict[str, str]:
    """`name=folder` pairs."""
    return dict(word.partition("=")[::2] for word in words)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description="transformers' generate behind HTTP.")
    parser.add_argument("models", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--max-batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    server = Server(read_folders(options.models), options.dtype, options.max_batch)
    asyncio.run(serve(server, options.port))


if __name__ == "__main__":
    main()
