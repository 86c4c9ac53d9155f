"""Libraries behind the completion API: what the load generator reads is what they generated."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp

from blockllm.bench.client import Outcome, Target, ask
from blockllm.bench.peer_server import Backend, Job, serve
from blockllm.bench.transformers_server import StaticBatches
from blockllm.bench.workload import Planned
from tests.makers import make_checkpoint, make_tokenizer
from tests.oracle.reference import generate, load

PROMPTS = ([5, 6, 7, 8], [9, 10])


class Counting:
    """Gives a request the numbers behind its prompt's last."""

    def __init__(self) -> None:
        self.jobs: asyncio.Queue[Job] = asyncio.Queue()

    def decode(self, model: str, tokens: list[int]) -> str:
        return {"numbers": " ".join(map(str, tokens))}[model]

    def submit(self, job: Job) -> None:
        self.jobs.put_nowait(job)

    async def work(self) -> None:
        while True:
            job = await self.jobs.get()
            for step in range(job.body.max_tokens):
                job.tokens.put_nowait(job.body.prompt[-1] + 1 + step)
            job.tokens.put_nowait(None)


Ask = Callable[[str, list[int], int], Awaitable[Outcome]]


@asynccontextmanager
async def asking(backend: Backend) -> AsyncIterator[Ask]:
    """Sends a request to a server of this backend."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = asyncio.create_task(serve(backend, port))
    async with aiohttp.ClientSession() as session:

        async def send(model: str, prompt: list[int], tokens: int) -> Outcome:
            planned = Planned(0, 0.0, model, "", prompt, len(prompt), tokens)
            target = Target(f"http://127.0.0.1:{port}", model, {}, True)
            return await ask(session, planned, target, "", 0.0)

        await asyncio.sleep(0.1)
        yield send
    server.cancel()
    with suppress(asyncio.CancelledError):
        await server


def test_tokens_text_and_counts_arrive() -> None:
    async def scenario() -> Outcome:
        async with asking(Counting()) as send:
            return await send("numbers", [1, 2], 4)

    outcome = asyncio.run(scenario())
    assert (outcome.error, outcome.token_ids, outcome.text) == ("", [3, 4, 5, 6], "3 4 5 6")
    assert (outcome.tokens, outcome.prompt_tokens) == (4, 2)


def test_an_unknown_model_is_refused() -> None:
    async def scenario() -> Outcome:
        async with asking(Counting()) as send:
            return await send("letters", [1], 1)

    assert asyncio.run(scenario()).error == "http-404"


def test_a_static_batch_answers_as_each_request_alone(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "tiny", num_hidden_layers=1)
    make_tokenizer(path)

    async def scenario() -> list[Outcome]:
        async with asking(StaticBatches({"tiny": str(path)}, "float32", 8)) as send:
            return await asyncio.gather(*(send("tiny", prompt, 5) for prompt in PROMPTS))

    model = load(path)
    for outcome, prompt in zip(asyncio.run(scenario()), PROMPTS, strict=True):
        assert outcome.token_ids == generate(model, prompt, 5).tokens
