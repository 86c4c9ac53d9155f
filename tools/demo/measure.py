"""What sharing is worth on the running demo server: a mixed batch against one model at a time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple
from urllib.request import urlopen

from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

REQUESTS_PER_MODEL = 4
MAX_TOKENS = 48
PAIRS = 3


class SpanUse(NamedTuple):
    """One span's part in the mixed runs."""

    span: str
    models: int
    hops: float
    rows: float


class Measured(NamedTuple):
    """What the table shows."""

    models: int
    weight_bytes: float
    unshared_bytes: float
    mixed: list[float]  # output tokens/s, one per pair
    in_turn: list[float]
    spans: list[SpanUse]

    @property
    def ratio(self) -> float:
        """Median of the pairs' ratios."""
        return statistics.median(m / t for m, t in zip(self.mixed, self.in_turn, strict=True))


Samples = dict[tuple[str, str], float]  # (metric, span label) → value


def scrape(port: int) -> Samples:
    """The server's metrics page as numbers."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, sample.labels.get("span", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels or "span" in sample.labels
    }


async def measure(port: int, prompts: dict[str, str]) -> Measured:
    """Interleaved pairs of both arms with equal work; the first pair warms up and is dropped."""
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        mixed, in_turn, used = [], [], {}
        for pair in range(PAIRS + 1):
            before = scrape(port)
            fast = await _tokens_per_second(client, prompts, [list(prompts)])
            await asyncio.sleep(1.2)  # the server refreshes its counters about once a second
            after = scrape(port)
            slow = await _tokens_per_second(client, prompts, [[model] for model in prompts])
            if pair:
                mixed.append(fast)
                in_turn.append(slow)
                used = {k: used.get(k, 0.0) + after[k] - before.get(k, 0.0) for k in after}
    return Measured(
        models=len(prompts),
        weight_bytes=after["blockllm_weight_bytes", ""],
        unshared_bytes=after["blockllm_weight_bytes_unshared", ""],
        mixed=mixed,
        in_turn=in_turn,
        spans=list(_span_use(used, after)),
    )


def _span_use(used: Samples, levels: Samples) -> Iterable[SpanUse]:
    for (name, span), models in levels.items():
        if name == "blockllm_span_models":
            hops = used["blockllm_span_hops_total", span]
            yield SpanUse(span, int(models), hops, used["blockllm_span_rows_total", span])


async def _tokens_per_second(
    client: AsyncOpenAI, prompts: dict[str, str], groups: list[list[str]]
) -> float:
    """Run the groups one after another, the requests of a group together."""
    start, tokens = time.perf_counter(), 0
    for group in groups:
        answers = await asyncio.gather(
            *(
                client.completions.create(
                    model=model,
                    prompt=f"# {number}\n{prompts[model]}",
                    max_tokens=MAX_TOKENS,
                    temperature=0,
                    extra_body={"ignore_eos": True},
                )
                for model in group
                for number in range(REQUESTS_PER_MODEL)
            )
        )
        tokens += sum(answer.usage.completion_tokens for answer in answers if answer.usage)
    return tokens / (time.perf_counter() - start)
