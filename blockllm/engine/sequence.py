"""State of one request inside the engine: computed tokens chase total tokens (design law 2)."""

from __future__ import annotations

import secrets
from typing import NamedTuple

import numpy as np

from blockllm.chain import Route, Stop
from blockllm.core import Request, Rope
from blockllm.engine.kv.cache import RouteKV, SequenceKV
from blockllm.engine.kv.prefix import PageHashes
from blockllm.engine.place import Place


class StopState(NamedTuple):
    """One stop of a route, and the queue its rows wait in."""

    place: Place
    stop: Stop


class RouteState:
    """What the engine precomputes for one served model; shared by its sequences."""

    def __init__(
        self,
        rank: int,
        route: Route,
        stops: tuple[StopState, ...],
        kv: RouteKV,
        kv_class: int,
        max_context: int,
    ) -> None:
        self.rank = rank  # position in path order: models on one path are neighbours
        self.route = route
        self.stops = stops
        self.kv = kv
        self.kv_class = kv_class
        self.max_context = max_context
        self.eos_ids = frozenset(route.chain.eos_ids)
        self.dynamic_rope = _dynamic_rope(route)
        self.prompt_tokens = 0
        self.generation_tokens = 0


def _dynamic_rope(route: Route) -> Rope | None:
    for entry in route.chain.entries:
        for layer in entry.block.layers:
            rope = getattr(layer.function, "rope", None)
            if isinstance(rope, Rope) and rope.kind == "dynamic":
                return rope
    return None


class Sequence:
    """Tokens, progress and pages of one request. Created at submit, owned by the engine loop."""

    def __init__(self, request: Request, state: RouteState, page_size: int) -> None:
        self.request = request
        self.state = state
        self.num_prompt = len(request.prompt)
        capacity = self.num_prompt + request.sampling.max_tokens
        self.tokens = np.empty(capacity, np.int64)
        self.tokens[: self.num_prompt] = request.prompt
        self.num_total = self.num_prompt
        self.num_computed = 0
        self.kv: SequenceKV | None = None  # set while admitted
        self.hashes = PageHashes(self._salt(), page_size)
        self.pending_keys: tuple[bytes, ...] = ()  # pages it promised to compute, see admission
        self.cached_tokens = 0  # prompt tokens found in the prefix index at first admission
        self.was_preempted = False
        self.queue_seconds = 0.0  # from the front end's arrival to first admission
        seed = request.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed

    def _salt(self) -> tuple[str, ...]:
        salt: tuple[str, ...] = (self.request.salt,)
        rope = self.state.dynamic_rope
        if rope is not None and self.num_prompt > rope.original_max_position:
            # every prompt token is rotated by a frequency that depends on the prompt's length
            salt += (str(self.num_prompt),)
        return salt

    @property
    def remaining(self) -> int:
        """Rows still to compute before the next token can be sampled."""
        return self.num_total - self.num_computed

    @property
    def num_generated(self) -> int:
        return self.num_total - self.num_prompt

    def append(self, token: int) -> None:
        """Add a sampled token."""
        self.tokens[self.num_total] = token
        self.num_total += 1

    def known_tokens(self) -> np.ndarray:
        """View of all tokens so far."""
        return self.tokens[: self.num_total]
