"""An engine without a model: echoes the prompt, token by token.

`min_p` of a request steers it: 0.5 crash, 0.25 slow (50 ms per turn), 0.125 busy (one turn computes
for 1.5 s), 0.75 report an error.
"""

from __future__ import annotations

import time

from blockllm.core import Finish, Request, TokenEvent, TokenLogprobs
from blockllm.errors import BadRequest, Overloaded
from blockllm.observability.stats import EngineStats, SpanStats

CRASH, SLOW, BUSY, ERROR = 0.5, 0.25, 0.125, 0.75


class FakeEngine:
    def __init__(self, max_requests: int = 1000, vocab_size: int = 100_000) -> None:
        self.max_requests = max_requests
        self.vocab_size = vocab_size
        self.requests: dict[str, tuple[Request, int]] = {}
        self.turns = 0
        self._started = time.process_time()
        self.num_tokens: dict[str, int] = {}
        self.salts: list[str] = []

    def submit(self, request: Request) -> None:
        if max(request.prompt) >= self.vocab_size:
            raise BadRequest("prompt: an id is not in the vocabulary", "prompt")
        if len(self.requests) >= self.max_requests:
            raise Overloaded("too many requests wait")
        self.salts.append(request.salt)
        self.requests[request.id] = (request, 0)

    def cancel(self, request_id: str) -> None:
        self.requests.pop(request_id, None)

    @property
    def has_work(self) -> bool:
        return bool(self.requests)

    def step(self) -> list[TokenEvent]:
        self.turns += 1
        behaviours = {request.sampling.min_p for request, _ in self.requests.values()}
        if CRASH in behaviours:
            raise RuntimeError("the fake engine was told to crash")
        if SLOW in behaviours:
            time.sleep(0.05)
        while BUSY in behaviours and time.process_time() - self._started < 1.5:
            pass
        events = [self._advance(request, count) for request, count in list(self.requests.values())]
        for event in events:
            if event.finish is not None:
                del self.requests[event.request]
        return events

    def _advance(self, request: Request, count: int) -> TokenEvent:
        sampling = request.sampling
        if sampling.min_p == ERROR:
            return TokenEvent(request.id, finish=Finish.ERROR, error="the fake engine refused")
        token = request.prompt[count % len(request.prompt)]
        self.requests[request.id] = (request, count + 1)
        self.num_tokens[request.model] = self.num_tokens.get(request.model, 0) + 1
        finish = Finish.LENGTH if count + 1 == sampling.max_tokens else None
        if token in sampling.stop_ids and count >= sampling.min_tokens:
            finish = Finish.STOP
        logprobs = None
        if sampling.logprobs is not None:
            top = tuple((token + k, -0.5 - k) for k in range(sampling.logprobs))
            logprobs = TokenLogprobs(-0.5, top)
        return TokenEvent(request.id, token, logprobs, finish, cached_tokens=2 if not count else 0)

    def stats(self) -> EngineStats:
        span = SpanStats("embed", ("base", "tuned"), self.turns, self.turns * 2)
        return EngineStats(
            num_running=len(self.requests),
            num_pages=10,
            num_pages_free=7,
            num_pages_cached=1,
            weight_bytes=500,
            weight_bytes_unshared=1000,
            generation_tokens=dict(self.num_tokens),
            turns=self.turns,
            spans=(span,),
        )

    def check_books(self) -> None:
        assert not self.requests
