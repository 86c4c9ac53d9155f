"""What the soak test asks: a seeded stream of mixed requests, and how the client behaves.

Greedy requests are drawn from a limited pool, so that equal questions meet different company
and must still get equal answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

VOCABULARY = (
    "def return class self import value the list of name error read write path open file index "
    "count text bytes token (x) = + == [0] : # if else for in not None True print len range"
)
WORDS = VOCABULARY.split()
STOPS = ["\n", "return", ")", "self", "zzz"]
HUGE_TOKEN = 10**9  # only the engine knows the vocabulary
INVALID: list[tuple[int, dict[str, Any]]] = [  # status, what is wrong
    (404, {"model": "no-such-model"}),
    (400, {"n": 99}),
    (400, {"temperature": 9}),
    (400, {"max_tokens": 0}),
    (400, {"max_tokens": 10**7}),
    (400, {"top_p": 2}),
    (400, {"stop": ["x" * 2000]}),
    (400, {"logprobs": "many"}),
    (400, {"prompt": []}),
    (400, {"prompt": [-1, 5]}),
    (400, {"prompt": [HUGE_TOKEN]}),
    (400, {"prompt": 7, "messages": "hello"}),
    (400, {"min_tokens": 5, "max_tokens": 2}),
    (400, {"logit_bias": {"5": 1000}}),
]
# way of the client → share of the requests
WAYS = {"plain": 36, "stream": 30, "abort": 12, "disconnect": 9, "kill": 6, "invalid": 7}


class Case(NamedTuple):
    """One request. `key` names greedy ones: equal keys must have equal answers. `patience` says
    how long the client stays: events of a stream, seconds, or the share of the bytes it sends.
    """

    number: int
    way: str
    path: str
    body: bytes
    status: int = 200
    key: str = ""
    patience: float = 0.0


class RequestWriter:
    """Writes requests for the served models; `models` maps names to their context in tokens."""

    def __init__(self, seed: int, models: dict[str, int], num_greedy: int) -> None:
        self._random = random.Random(seed)
        self._models = models
        room = self._room(min(models.values()))
        self._prefixes = [self._text(room // 2) for _ in range(6)]
        self._greedy = [self._greedy_body() for _ in range(num_greedy)]

    def cases(self, count: int) -> Iterator[Case]:
        """`count` requests in an order that depends on the seed alone."""
        for number in range(count):
            way = self._random.choices(list(WAYS), list(WAYS.values()))[0]
            yield self._invalid(number) if way == "invalid" else self._valid(number, way)

    def _valid(self, number: int, way: str) -> Case:
        is_greedy = self._random.random() < 0.6
        path, body = self._random.choice(self._greedy) if is_greedy else self._sampled_body()
        key = f"{path} {json.dumps(body, sort_keys=True)}" if is_greedy else ""
        body = {**body, "return_token_ids": True}
        if way in ("stream", "abort") or (way == "kill" and self._random.random() < 0.5):
            body["stream"] = True
            if self._random.random() < 0.5:
                body["stream_options"] = {"include_usage": True}
        patience = {
            "abort": self._random.randint(0, 12),
            "disconnect": self._random.choice((0.0, 0.01, 0.05, 0.2, 0.5)),
            "kill": self._random.choice((0.3, 0.9, 1.0)),
        }.get(way, 0)
        return Case(number, way, path, json.dumps(body).encode(), 200, key, patience)

    def _invalid(self, number: int) -> Case:
        status, wrong = self._random.choice(INVALID)
        path, body = self._sampled_body()
        if not set(body) >= set(wrong) & {"prompt"}:  # these errors are about completions
            path, body = "/v1/completions", {"model": body["model"], "prompt": "x"}
        text = json.dumps({**body, **wrong})
        if self._random.random() < 0.1:
            status, text = 400, json.dumps(body)[:-2]
        return Case(number, "invalid", path, text.encode(), status)

    def _greedy_body(self) -> tuple[str, dict[str, Any]]:
        path, body = self._body()
        body["temperature"] = 0
        return path, body

    def _sampled_body(self) -> tuple[str, dict[str, Any]]:
        path, body = self._body()
        choose = self._random
        options = {
            "temperature": choose.uniform(0.1, 2.0),
            "top_p": choose.uniform(0.1, 1.0),
            "top_k": choose.randint(1, 40),
            "min_p": choose.uniform(0.0, 0.3),
            "presence_penalty": choose.uniform(-2, 2),
            "frequency_penalty": choose.uniform(-2, 2),
            "repetition_penalty": choose.uniform(0.8, 1.5),
            "seed": choose.randint(-(2**63), 2**63 - 1),
            "logit_bias": {str(choose.randint(3, 60)): choose.uniform(-100, 5)},
            "ignore_eos": True,
        }
        names = choose.sample(list(options), choose.randint(0, 4))
        return path, body | {name: options[name] for name in names}

    def _body(self) -> tuple[str, dict[str, Any]]:
        choose = self._random
        model = choose.choice(list(self._models))
        body: dict[str, Any] = {"model": model, "max_tokens": choose.randint(1, 32)}
        text = self._prompt(self._room(self._models[model]))
        is_chat = choose.random() < 0.4
        if is_chat:
            body["messages"] = [{"role": "user", "content": text}]
        else:
            body["prompt"] = [text, text[::-1]] if choose.random() < 0.1 else text
        if choose.random() < 0.2:
            body["n"] = choose.randint(2, 4)
        if choose.random() < 0.3:
            body["stop"] = choose.sample(STOPS, choose.randint(1, 3))
        if choose.random() < 0.2:
            body |= {"logprobs": True, "top_logprobs": 3} if is_chat else {"logprobs": 3}
        return ("/v1/chat/completions" if is_chat else "/v1/completions"), body

    def _prompt(self, room: int) -> str:
        shared = self._random.choice(self._prefixes) if self._random.random() < 0.5 else ""
        return shared + self._text(self._random.randint(1, max(1, room - len(shared))))

    def _text(self, length: int) -> str:
        words = self._random.choices(WORDS, k=length // 2 + 1)
        return " ".join(words)[: max(1, length)]

    @staticmethod
    def _room(context: int) -> int:
        """Characters of a prompt that fit for certain, with template and answer beside them."""
        return max(4, min(500, context - 64))
