"""State of one request inside the engine: computed tokens chase total tokens (design law 2)."""

from __future__ import annotations

import functools
import itertools
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from blockllm.chain import Route, Stop
from blockllm.config import TenantSettings
from blockllm.core import Request, Rope, Sampling
from blockllm.engine.kv.cache import RouteKV, SequenceKV
from blockllm.engine.kv.prefix import PageHashes
from blockllm.engine.sequence.place import Place
from blockllm.engine.sequence.tenants import TenantState
from blockllm.engine.sequence.token_counts import TokenCounts
from blockllm.engine.sequence.virtual import virtual_tokens
from blockllm.engine.work import PausedRows, Work


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
        self.virtual = virtual_tokens(route.chain, max_context)
        self.max_context = max_context - self.virtual.num_tokens  # of what users send and get
        self.eos_ids = frozenset(route.chain.eos_ids)
        self.dynamic_rope = _dynamic_rope(route)
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.last_turn = 0  # the last one that had rows of the model


def _dynamic_rope(route: Route) -> Rope | None:
    for entry in route.chain.entries:
        for layer in entry.block.layers:
            rope = getattr(layer.function, "rope", None)
            if isinstance(rope, Rope) and rope.kind == "dynamic":
                return rope
    return None


def _is_plainly_greedy(sampling: Sampling) -> bool:
    """The largest logit is the answer and nothing else is asked for, at every step."""
    plain = Sampling(
        max_tokens=sampling.max_tokens,
        temperature=0.0,
        seed=sampling.seed,
        stop_ids=sampling.stop_ids,
        ignore_eos=sampling.ignore_eos,
    )
    filters = msgspec.structs.replace(sampling, top_p=1.0, top_k=0, min_p=0.0)
    return filters == plain


def _joined(paused: list[PausedRows]) -> Iterator[PausedRows]:
    """Neighbouring rows that wait at one stop are one."""
    for stop, group in itertools.groupby(paused, key=lambda rows: rows.stop):
        first, *others = group
        yield PausedRows(stop, first.start, first.rows + sum(rows.rows for rows in others))


class Sequence:
    """Tokens, progress and pages of one request. Created at submit, owned by the engine loop.

    Its rows are the model's virtual tokens, the prompt and what was generated, in this order;
    positions, `num_total` and `num_computed` count them all. Seeded draws go by these positions.
    """

    def __init__(
        self, request: Request, state: RouteState, page_size: int, number: int = 0
    ) -> None:
        self.request = request
        self.number = number  # what plans call it
        self.model, self.tenant = request.model, request.tenant
        self.is_offline = request.offline
        self.pool = state.kv_class  # the KV cache that its pages are of
        self.num_stops = len(state.stops)
        self.state = state
        self.num_virtual = state.virtual.num_tokens
        self.num_prompt = len(request.prompt)
        self.num_given = self.num_virtual + self.num_prompt  # rows before the first generated one
        self.tokens = np.empty(self.num_given + request.sampling.max_tokens, np.int64)
        self.tokens[: self.num_virtual] = state.virtual.ids()
        self.tokens[self.num_virtual : self.num_given] = request.prompt
        self.most_pages = state.kv.total_bundles * -(-len(self.tokens) // page_size)
        self.num_total = self.num_given
        self.num_computed = 0  # rows that have passed all stops
        self.num_begun = 0  # these, and those that have passed some
        self.paused: list[PausedRows] = []  # where the latter wait, deepest first
        # where the last token stands among those just sampled on the device; -1: it is known here
        self.sampled_at = -1
        self.own_turn = 0  # the last one that had rows of it
        self.num_charged = 0  # given rows that its tenant's counter has
        self.account = TenantState(TenantSettings())  # of its tenant; set when it is submitted
        self.lane: int | None = None  # that computes rows of it right now
        self.kv: SequenceKV | None = None  # set while admitted
        self.hashes = PageHashes(self._salt(), page_size)
        self.pending_keys: tuple[bytes, ...] = ()  # pages it promised to compute, see admission
        self.cached_tokens = 0  # prompt tokens found in the prefix index at first admission
        self.was_preempted = False
        self.queue_seconds = 0.0  # from the front end's arrival to first admission
        seed = request.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed
        sampling = request.sampling
        self.end_ids = state.eos_ids | frozenset(sampling.stop_ids)  # before `min_tokens`: none
        self.stop_ids = frozenset(sampling.stop_ids) if sampling.ignore_eos else self.end_ids
        self.is_plainly_greedy = _is_plainly_greedy(sampling)

    @functools.cached_property
    def token_counts(self) -> TokenCounts:
        """Counts of all tokens; only requests with penalties have one."""
        return TokenCounts()

    @functools.cached_property
    def output_counts(self) -> TokenCounts:
        """Counts of the generated tokens; only requests with penalties have one."""
        return TokenCounts()

    def _salt(self) -> tuple[str, ...]:
        salt: tuple[str, ...] = (self.request.salt,)
        rope = self.state.dynamic_rope
        if rope is not None and self.num_given > rope.original_max_position:
            # every given token is rotated by a frequency that depends on how many there are
            salt += (str(self.num_given),)
        return salt

    @property
    def last_turn(self) -> int:
        """The number of the last turn that had rows of its model."""
        return self.state.last_turn

    @property
    def remaining(self) -> int:
        """Rows still to compute before the next token can be sampled."""
        if self.sampled_at >= 0 and self.num_total == len(self.tokens):
            return 0  # none follows
        return self.num_total - self.num_computed

    @property
    def num_new(self) -> int:
        """Rows that have not begun."""
        if self.sampled_at >= 0 and self.num_total == len(self.tokens):
            return 0  # none follows
        return self.num_total - self.num_begun

    def restart(self, num_computed: int) -> None:
        """From now on so many rows are computed, and none behind them has begun."""
        self.num_computed = self.num_begun = num_computed
        self.paused = []

    def advance(self, work: Work) -> None:
        """The rows have passed these stops."""
        if work.first_stop == 0:
            self.num_begun += work.rows
        else:
            at = next(i for i, rows in enumerate(self.paused) if rows.stop == work.first_stop)
            stop, start, rows = self.paused.pop(at)
            assert start == work.start
            if rows > work.rows:
                self.paused.insert(at, PausedRows(stop, start + work.rows, rows - work.rows))
        if work.last_stop + 1 == self.num_stops:
            assert work.start == self.num_computed
            self.num_computed += work.rows
            return
        self.paused.append(PausedRows(work.last_stop + 1, work.start, work.rows))
        self.paused.sort(key=lambda rows: rows.start)
        self.paused = list(_joined(self.paused))

    def charge(self, work: Work) -> int:
        """Given rows of the work that were never computed before; the next call knows of them."""
        end = min(work.start + work.rows, self.num_given)
        new = max(0, end - max(work.start, self.num_charged))
        self.num_charged = max(self.num_charged, end)
        return new

    def take_back(self) -> int | None:
        """The last row has to be computed again. The stop where it waited, None if nowhere."""
        self.num_begun -= 1
        if not self.paused:
            self.num_computed -= 1
            return None
        stop, start, rows = self.paused.pop()
        if rows > 1:
            self.paused.append(PausedRows(stop, start, rows - 1))
        return stop

    @property
    def num_generated(self) -> int:
        return self.num_total - self.num_given

    @property
    def num_known(self) -> int:
        """Rows whose tokens the host knows: all, or all but the last."""
        return self.num_total - (self.sampled_at >= 0)

    def append(self, token: int) -> None:
        """Add a sampled token."""
        self.tokens[self.num_total] = token
        self.num_total += 1

    def expect(self, sampled_at: int) -> None:
        """Add a token that the device is sampling; `settle` says which it is."""
        self.append(0)
        self.sampled_at = sampled_at

    def settle(self, token: int) -> None:
        """The expected token is known."""
        self.tokens[self.num_total - 1] = token
        self.sampled_at = -1

    def known_tokens(self) -> np.ndarray:
        """View of the prompt and all generated tokens so far."""
        return self.tokens[self.num_virtual : self.num_known]

    def known_rows(self) -> np.ndarray:
        """View of the same behind the virtual tokens: what pages are keyed by."""
        return self.tokens[: self.num_known]
