"""Clients of three tenants that ask what they know the answers to, and judge what comes back."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import httpx2

from tools.campaigns.faults.system import KEYS

LOST_SECONDS = 40.0  # an answer that takes longer counts as hung
QUESTIONS = 40


def questions(models: list[str], seed: int = 0) -> list[dict[str, Any]]:
    """Greedy requests, equal in every run."""
    chosen = random.Random(seed)
    return [
        {
            "model": models[number % len(models)],
            "prompt": [chosen.randrange(5, 90) for _ in range(chosen.randint(1, 40))],
            "max_tokens": chosen.randint(1, 60),
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        for number in range(QUESTIONS)
    ]


class BackgroundLoad:
    """Asks without a pause while it is let, and counts outcomes."""

    def __init__(self, port: int, asked: list[dict[str, Any]], seed: int) -> None:
        self.counts, self.wrong = Counter[str](), list[str]()
        self.right: dict[int, list[int]] = {}
        self.gate = asyncio.Event()
        self.in_flight = 0
        self.missing: set[str] = set()  # models that a fault has taken away
        self._asked, self._random, self._port = asked, random.Random(seed), port
        self._clients = [
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{port}",
                headers={"authorization": f"Bearer {key}"},
                timeout=LOST_SECONDS,
                limits=httpx2.Limits(max_keepalive_connections=1),
            )
            for key in KEYS.values()
        ]

    async def learn(self) -> None:
        """The answers, one at a time on a server without a fault so far."""
        for number in range(len(self._asked)):
            self.right[number] = await self._whole(self._clients[0], number)

    async def probe(self) -> bool:
        """Whether a request is answered right, now."""
        try:
            async with asyncio.timeout(2):
                return await self._whole(self._clients[0], 0) == self.right[0]
        except (TimeoutError, httpx2.HTTPError, KeyError, ValueError, _Told):
            return False

    async def metrics(self) -> str:
        """The page of metrics."""
        answer = await self._clients[0].get("/metrics")
        answer.raise_for_status()
        return answer.text

    async def work(self) -> None:
        """For ever."""
        while True:
            await self.gate.wait()
            self.in_flight += 1
            try:
                await self._ask()
            finally:
                self.in_flight -= 1

    async def _ask(self) -> None:
        number = self._random.randrange(len(self._asked))
        client = self._random.choice(self._clients)
        way = self._streamed if self._random.random() < 0.5 else self._whole
        start = time.monotonic()
        try:
            found = await way(client, number)
        except _Told as told:
            self.counts[f"told: {told}"] += 1
            await asyncio.sleep(0.05)
        except httpx2.TimeoutException:
            self._complain(number, f"no end within {time.monotonic() - start:.0f} s")
        except httpx2.TransportError:  # the server itself was killed, or had no descriptor left
            self.counts["connection ended"] += 1
            await asyncio.sleep(0.05)
        except (KeyError, ValueError) as error:
            self._complain(number, f"{type(error).__name__}: {error}")
        else:
            self.counts["right"] += 1
            if found != self.right[number]:
                self._complain(number, f"got {found}, expected {self.right[number]}")

    async def _whole(self, client: httpx2.AsyncClient, number: int) -> list[int]:
        answer = await client.post("/v1/completions", json=self._asked[number])
        self._check(answer, number)
        tokens: list[int] = answer.json()["choices"][0]["token_ids"]
        return tokens

    async def _streamed(self, client: httpx2.AsyncClient, number: int) -> list[int]:
        body = {**self._asked[number], "stream": True}
        tokens: list[int] = []
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
            self._check(answer, number)
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    return tokens
                if line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise _Told(f"event {event['error']['type']}")
                    tokens += event["choices"][0].get("token_ids") or []
        raise ValueError("the stream ended without [DONE] and without an error")

    def _check(self, answer: httpx2.Response, number: int) -> None:
        """Raises _Told for a refusal that says clearly what to do."""
        if answer.status_code == 200:
            return
        error = answer.json()["error"]
        if answer.status_code in (429, 503) and answer.headers["retry-after"].isdigit():
            raise _Told(f"{answer.status_code} {error['type']}")
        if answer.status_code == 404 and self._asked[number]["model"] in self.missing:
            raise _Told("404 of a model that is gone")
        raise ValueError(f"status {answer.status_code}: {answer.text[:300]}")

    def _complain(self, number: int, what: str) -> None:
        self.counts["wrong"] += 1
        self.wrong.append(f"question {number} of {self._asked[number]['model']}: {what}")

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.aclose()


class _Told(Exception):
    """Refused or ended with a clear word."""
