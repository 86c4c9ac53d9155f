"""The soak test's client: sends one case the way it says, and judges what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx2

from tools.soak.cases import Case
from tools.soak.disturb import Disturbances

TIE = 1e-3  # logprobs closer than this are equal for fp32 sums in another order


class _Unready(Exception):
    """The agent was killed a moment ago."""


class Choice(NamedTuple):
    """One answer of a response."""

    tokens: tuple[int, ...]
    text: str
    finish: str


Answer = tuple[Choice, ...]


class Mismatch(NamedTuple):
    """Two different answers to one greedy question."""

    key: str
    first: Answer
    other: Answer


class SoakResults:
    """Everything seen so far."""

    def __init__(self) -> None:
        self.ways: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.problems: list[str] = []
        self.firsts: dict[str, Answer] = {}
        self.mismatches: list[Mismatch] = []
        self.num_compared = 0
        self.num_tokens = 0

    def compare(self, key: str, answer: Answer) -> None:
        """Hold a greedy answer against the first one to the same question."""
        first = self.firsts.setdefault(key, answer)
        if first is not answer:
            self.num_compared += 1
            if first != answer:
                self.mismatches.append(Mismatch(key, first, answer))


class Client:
    """Sends cases to one server."""

    def __init__(
        self, port: int, concurrency: int, keys: Sequence[str], seen: Disturbances
    ) -> None:
        """`keys`: one per tenant, used in turn; `seen`: what happens around."""
        self.results, self._seen = SoakResults(), seen
        self._port, self._keys = port, keys
        self.latencies: list[float] = []  # seconds of whole answers, until the next look
        limits = httpx2.Limits(max_connections=concurrency + 4)
        self._http = httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            timeout=120,
            limits=limits,
            headers={"authorization": f"Bearer {keys[0]}"},
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, path: str) -> httpx2.Response:
        """A GET that must succeed."""
        response = await self._http.get(path)
        response.raise_for_status()
        return response

    async def send(self, case: Case) -> None:
        """Play one case to its end; whatever is wrong lands in the results."""
        ways = {"abort": self._stream, "stream": self._stream, "kill": self._kill}
        start = time.monotonic()
        try:
            outcome = await ways.get(case.way, self._plain)(case)
            if outcome == "answered":
                self.latencies.append(time.monotonic() - start)
        except _Unready:
            outcome = "refused while the agent started again"
        except (httpx2.HTTPError, OSError, ValueError, KeyError) as error:
            outcome = "ended with the agent"
            if not self._seen.excuses(start):
                self._complain(case, f"{type(error).__name__}: {error}")
                outcome = "failed"
        self.results.ways[f"{case.way}: {outcome}"] += 1

    async def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request outside the stream of cases; its answer as JSON."""
        response = await self._http.post(path, json=body)
        response.raise_for_status()
        answer: dict[str, Any] = response.json()
        return answer

    async def _plain(self, case: Case) -> str:
        patience = case.patience if case.way == "disconnect" else None
        try:
            async with asyncio.timeout(patience):
                response = await self._http.post(
                    case.path, content=case.body, headers=self._headers(case)
                )
        except TimeoutError:
            return "left"
        self._check_status(case, response)
        if response.status_code >= 400:
            if "message" not in response.json()["error"]:
                self._complain(case, "an error without a message")
            return "refused"
        self._book(case, read_answer(response.json()))
        return "answered"

    async def _stream(self, case: Case) -> str:
        events: list[dict[str, Any]] = []
        request = self._http.stream(
            "POST", case.path, content=case.body, headers=self._headers(case)
        )
        async with request as response:
            self._check_status(case, response)
            async for line in response.aiter_lines():
                if case.way == "abort" and len(events) >= case.patience:
                    return "left"
                if line == "data: [DONE]":
                    self._book(case, join_events(events))
                    return "answered"
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
        raise ValueError("the stream ended without [DONE]")

    async def _kill(self, case: Case) -> str:
        """Send all or a part of the request, then reset the connection."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"POST {case.path} HTTP/1.1\r\nhost: x\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self._headers(case).items())
        data = f"{head}content-length: {len(case.body)}\r\n\r\n".encode() + case.body
        writer.write(data[: int(len(data) * case.patience)])
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        await asyncio.sleep(0.02 if case.number % 2 else 0)
        linger = struct.pack("ii", 1, 0)  # close means reset
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        return "left"

    def _request(self, case: Case) -> dict[str, Any]:
        return {"url": case.path, "content": case.body, "headers": self._headers(case)}

    def _headers(self, case: Case) -> dict[str, str]:
        key = self._keys[case.number % len(self._keys)]
        return {"content-type": "application/json", "authorization": f"Bearer {key}"}

    def _check_status(self, case: Case, response: httpx2.Response) -> None:
        if response.status_code == 503 and self._seen.excuses(time.monotonic()):
            raise _Unready
        self.results.statuses[response.status_code] += 1
        if response.status_code != case.status:
            self._complain(case, f"status {response.status_code}, not {case.status}")

    def _book(self, case: Case, answer: Answer) -> None:
        body = json.loads(case.body)
        if any(len(choice.tokens) > body["max_tokens"] for choice in answer):
            self._complain(case, "longer than max_tokens")
        if any(choice.finish not in ("stop", "length") for choice in answer):
            self._complain(case, f"ended with {[choice.finish for choice in answer]}")
        self.results.num_tokens += sum(len(choice.tokens) for choice in answer)
        if case.key:
            self.results.compare(case.key, answer)

    def _complain(self, case: Case, what: str) -> None:
        self.results.problems.append(f"{case.way} {case.number}: {what}; sent {case.body[:300]!r}")

    async def is_tie(self, mismatch: Mismatch) -> bool:
        """Whether the answers part where the two best tokens are equally likely in fp32."""
        path, _, text = mismatch.key.partition(" ")
        body = json.loads(text)
        again = await self.ask(path, {**body, "return_token_ids": True})
        for index, (one, other) in enumerate(zip(mismatch.first, mismatch.other, strict=True)):
            if one == other:
                continue
            both = list(zip(one.tokens, other.tokens, strict=False))
            parted = next((i for i, (a, b) in enumerate(both) if a != b), None)
            if parted is None:
                return False
            choice = again["choices"][index]
            prompt = again.get("prompt_token_ids") or choice["prompt_token_ids"]
            asked = {"model": body["model"], "max_tokens": 1, "temperature": 0, "logprobs": 3}
            asked["prompt"] = [*prompt, *one.tokens[:parted]]
            answer = await self.ask("/v1/completions", asked)
            best = sorted(answer["choices"][0]["logprobs"]["top_logprobs"][0].values())
            if best[-1] - best[-2] > TIE:
                return False
        return True


def read_answer(body: dict[str, Any]) -> Answer:
    """The choices of a response that was not streamed."""
    return tuple(
        Choice(
            tuple(choice["token_ids"]),
            choice["message"]["content"] if "message" in choice else choice["text"],
            choice["finish_reason"],
        )
        for choice in sorted(body["choices"], key=lambda choice: int(choice["index"]))
    )


def join_events(events: list[dict[str, Any]]) -> Answer:
    """The choices of a stream. Raises ValueError for an error event."""
    parts: dict[int, tuple[list[int], list[str], list[str]]] = {}
    for event in events:
        if "error" in event:
            raise ValueError(f"an error in the stream: {event['error']}")
        for choice in event["choices"]:
            tokens, texts, ends = parts.setdefault(choice["index"], ([], [], []))
            tokens += choice.get("token_ids") or []
            texts.append(
                choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            )
            ends += [choice["finish_reason"]] if choice["finish_reason"] else []
    return tuple(
        Choice(tuple(tokens), "".join(texts), " ".join(ends))
        for _, (tokens, texts, ends) in sorted(parts.items())
    )
