"""Which requests wait, which run, and on which pages. Executes the plans of `schedule.py`."""

from __future__ import annotations

import time
from collections import deque
from itertools import islice

from blockllm.config import EngineSettings
from blockllm.core import Request
from blockllm.engine.finish import check_request
from blockllm.engine.kv.cache import KVCache, SequenceKV
from blockllm.engine.pace import Load, Pace
from blockllm.engine.schedule import Candidate, admit_rows, model_order, plan_running
from blockllm.engine.sequence import RouteState, Sequence
from blockllm.engine.turn import Grants, Turn
from blockllm.errors import BadRequest, ModelNotFound, Overloaded

# How many waiting requests one turn looks at; keeps a turn's cost independent of the queue.
_LOOK_AHEAD = 64


class Roster:
    """All requests the engine knows. A sequence has pages exactly while it runs."""

    def __init__(
        self,
        states: dict[str, RouteState],
        caches: list[KVCache],
        settings: EngineSettings,
        pace: Pace | None = None,
    ) -> None:
        self._states, self._caches, self._settings, self._pace = states, caches, settings, pace
        self._by_id: dict[str, Sequence] = {}
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # by age
        self._promised: set[bytes] = set()  # keys of pages that running prompts will publish
        self._last_turn: dict[str, int] = {}  # by model, where a turn belongs to one model
        self._turns = 0
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    @property
    def num_known(self) -> int:
        return len(self._by_id)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ModelNotFound, BadRequest, ContextTooLong, Overloaded."""
        state = self._states.get(request.model)
        if state is None:
            raise ModelNotFound(f"the model {request.model!r} is not served here", "model")
        if request.id in self._by_id:
            raise BadRequest(f"id: a request with id {request.id!r} is being served", "id")
        check_request(request, state, self._caches[state.kv_class])
        if len(self._waiting) >= self._settings.max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests wait already; try again later")
        sequence = Sequence(request, state, self._settings.page_size)
        self._by_id[request.id] = sequence
        self._waiting.append(sequence)

    def cancel(self, request_id: str) -> None:
        """Forget a request, whatever it is doing; unknown ids are ignored."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Drop a known sequence and give back what it holds."""
        del self._by_id[sequence.request.id]
        if sequence.kv is None:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._release(sequence)

    def awaits_token(self, sequence: Sequence) -> bool:
        """Whether all its rows are computed and it was neither ended nor cancelled meanwhile."""
        return self.knows(sequence) and not sequence.remaining

    def knows(self, sequence: Sequence) -> bool:
        """Whether the sequence is neither over nor cancelled."""
        return self._by_id.get(sequence.request.id) is sequence

    def grant(self) -> Grants:
        """Decide this turn's rows; take the pages for them, preempting and admitting."""
        if self._settings.batching == "blocks":
            return self._grant(None)
        self._turns += 1
        waiting = (sequence.request.model for sequence in self._by_id.values())
        for model in model_order(waiting, self._last_turn):
            grants = self._grant(model)
            if grants:
                self._last_turn[model] = self._turns
                return grants
        return []

    def _grant(self, model: str | None) -> Grants:
        """This turn's rows of the sequences of one model; None: of all."""
        grants: Grants = []
        preempted = False
        rows = self._max_rows()
        for index, cache in enumerate(self._caches):
            running = [s for s in self._running if s.state.kv_class == index and _is_of(s, model)]
            plan = plan_running(
                running, rows, cache.pool.num_available, self._pages_for, self._pages_of
            )
            for sequence in plan.preempted:
                self._preempt(sequence)
                preempted = True
            for sequence, count in plan.grants:
                assert sequence.kv is not None
                cache.grow(sequence.kv, sequence.num_computed + count)
                rows -= count
                grants.append((sequence, count))
        return grants if preempted else grants + self._admit(rows, model)

    def _max_rows(self) -> int:
        """Rows of this turn; fewer than allowed where a long turn would keep others waiting."""
        limit = self._settings.max_rows
        if self._pace is None:
            return limit
        running = (sequence for sequence in self._running if sequence.remaining > 1)
        prompt = next(running, None) or next(iter(self._waiting), None)
        if prompt is None:
            return limit
        decoding = [_load(s) for s in self._running if s.remaining == 1]
        return self._pace.rows(decoding, _load(prompt), limit)

    def _pages_for(self, sequence: Sequence, rows: int) -> int:
        assert sequence.kv is not None
        num_tokens = sequence.num_computed + rows
        if num_tokens <= sequence.kv.room:
            return 0
        held = [len(groups) for groups in sequence.kv.groups]
        cache = self._caches[sequence.state.kv_class]
        return cache.missing(sequence.state.kv, held, num_tokens)

    def _pages_of(self, sequence: Sequence) -> int:
        assert sequence.kv is not None
        groups = (group for run in sequence.kv.groups for group in run)
        return sum(len(group.pages) for group in groups if group.refs == 1)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the line; its tokens become rows to compute again."""
        self.preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        sequence.num_computed = 0
        sequence.was_preempted = True
        self._waiting.appendleft(sequence)

    def _admit(self, rows: int, model: str | None) -> Grants:
        grants: Grants = []
        candidates = (sequence for sequence in self._waiting if _is_of(sequence, model))
        for sequence in list(islice(candidates, _LOOK_AHEAD)):
            if rows <= 0 or len(self._running) >= self._settings.max_sequences:
                break
            count, wait = self._try_admit(sequence, rows)
            if count:
                grants.append((sequence, count))
                rows -= count
            elif not wait:
                break  # no room: requests behind must not overtake it
        return grants

    def _try_admit(self, sequence: Sequence, rows: int) -> tuple[int, bool]:
        """Rows granted, and whether a refused sequence merely waits for a shared page."""
        state = sequence.state
        cache = self._caches[state.kv_class]
        tokens = sequence.known_rows()
        found = cache.match(state.kv, sequence.hashes, tokens)
        pages = min(len(groups) for groups in found)
        # the last token is computed even if its page is known: its logits are wanted
        hit = min(pages * cache.page_size, len(tokens) - 1)
        keys = self._keys_from(sequence, cache, pages)
        same_pool = [s for s in self._running if s.state.kv_class == state.kv_class]
        candidate = Candidate(
            remaining=len(tokens) - hit,
            pages_now=cache.match_cost(found)
            + cache.missing(state.kv, [len(groups) for groups in found], len(tokens) + 1),
            blocked=bool(keys) and keys[0] in self._promised,
        )
        reserve = sum(s.state.kv.total_bundles for s in same_pool)
        count = admit_rows(candidate, rows, cache.pool.num_available, reserve, not same_pool)
        if not count:
            return 0, candidate.blocked
        self._waiting.remove(sequence)
        self._running.append(sequence)
        sequence.kv = cache.open(state.kv, sequence.hashes, found)
        sequence.num_computed = hit
        sequence.pending_keys = keys
        self._promised.update(keys)
        cache.grow(sequence.kv, hit + count)
        self._count_admission(sequence, hit)
        return count, False

    def _keys_from(self, sequence: Sequence, cache: KVCache, page: int) -> tuple[bytes, ...]:
        """Keys of the pages that the sequence will compute and publish, from `page` on."""
        if not self._settings.prefix_cache:
            return ()
        tokens = sequence.known_rows()
        upstream = sequence.state.kv.upstream[-1]
        hashes = sequence.hashes.upto(tokens, len(tokens) // cache.page_size)
        return tuple(upstream + key for key in hashes[page:])

    def _count_admission(self, sequence: Sequence, hit: int) -> None:
        if sequence.was_preempted:
            return
        sequence.cached_tokens = max(0, hit - sequence.num_virtual)
        if sequence.request.arrival:
            sequence.queue_seconds = time.monotonic() - sequence.request.arrival
        sequence.state.prompt_tokens += sequence.num_prompt
        self.prefix_queries += sequence.num_prompt
        self.prefix_hits += sequence.cached_tokens

    def advance(self, turn: Turn) -> None:
        """Book the turn's rows as computed and offer the pages they filled. True once they are
        launched: hops that read those pages are launched later."""
        for sequence, rows in zip(turn.sequences, turn.batch.counts.tolist(), strict=True):
            assert sequence.kv is not None
            sequence.num_computed += rows
            self._publish(sequence, sequence.kv)
            if sequence.pending_keys and sequence.remaining == 0:
                self._keep_promise(sequence)

    def _publish(self, sequence: Sequence, kv: SequenceKV) -> None:
        """Offer the pages that are computed and whose tokens, their names, are known."""
        known = sequence.known_rows()
        cache = self._caches[sequence.state.kv_class]
        cache.publish(kv, known, min(sequence.num_computed, len(known)))

    def _keep_promise(self, sequence: Sequence) -> None:
        self._promised.difference_update(sequence.pending_keys)
        sequence.pending_keys = ()

    def _release(self, sequence: Sequence) -> None:
        assert sequence.kv is not None
        self._publish(sequence, sequence.kv)  # a token may have become known since the last turn
        self._caches[sequence.state.kv_class].close(sequence.kv)
        sequence.kv = None
        self._keep_promise(sequence)

    def check_books(self) -> None:
        """Raise AssertionError unless pages, slots and references balance (design law 10)."""
        for cache in self._caches:
            cache.check_books(idle=not self._running)
        assert len(self._by_id) == len(self._running) + len(self._waiting)
        assert self._running or not self._promised


def _load(sequence: Sequence) -> Load:
    return Load([stop.stop.span for stop in sequence.state.stops], sequence.num_computed)


def _is_of(sequence: Sequence, model: str | None) -> bool:
    return model is None or sequence.request.model == model
