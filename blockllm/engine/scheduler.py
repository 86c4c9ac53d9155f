"""All requests that the engine knows: which wait, which run, on which pages. Executes plans."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from itertools import count

import torch

from blockllm.config import EngineSettings
from blockllm.core import Request
from blockllm.engine.batch.hops import Paused
from blockllm.engine.batch.turn import Grants, Turn, make_turn
from blockllm.engine.costs.turn_budget import SequencePath, TurnBudget
from blockllm.engine.hidden import HiddenStore
from blockllm.engine.kv.cache import KVCache, SequenceKV
from blockllm.engine.policies import make_policy
from blockllm.engine.policies.block_limits import stop_limits
from blockllm.engine.sequence.finish import check_quota, check_request
from blockllm.engine.sequence.planned_pages import PlannedPages, Prompt
from blockllm.engine.sequence.sequence import RouteState, Sequence
from blockllm.engine.sequence.tenants import TenantState
from blockllm.engine.sequence.waiting import WaitingLines
from blockllm.engine.work import Offline, Plan, Policy, View, Work, check
from blockllm.errors import BadRequest, ModelNotFound, Overloaded, TooManyRequests
from blockllm.shares import has_room


class Scheduler:
    """The only one that changes what sequences hold. A sequence has pages exactly while it runs."""

    checks_plans = False  # whether every plan is checked before it is executed; on in tests

    def __init__(
        self,
        states: dict[str, RouteState],
        caches: list[KVCache],
        settings: EngineSettings,
        budget: TurnBudget | None = None,
        row_limits: Mapping[int, int] | None = None,
        threads: int = 1,
    ) -> None:
        """`row_limits`: rows of one hop, by span, at most; a span that is absent takes any;
        `threads`: of all lanes together."""
        self._states, self._caches, self._settings, self._budget = states, caches, settings, budget
        limits = stop_limits(states, row_limits) if row_limits else {}
        self.policy: Policy = make_policy(settings.batching, limits)
        self._numbers = count(1)
        self._by_id: dict[str, Sequence] = {}
        self._by_number: dict[int, Sequence] = {}
        self._waiting = WaitingLines(settings.tenants)
        self._offline = WaitingLines(settings.tenants)  # with counters and quotas of their own
        self._running: list[Sequence] = []  # by age
        self._promised: set[bytes] = set()  # keys of pages that running prompts will publish
        self._hidden = HiddenStore()
        self._turns = 0
        self._threads = threads
        self._in_lanes = 0  # running sequences that a lane computes rows of
        self._leaving: set[Sequence] = set()  # over, but a lane computes on their pages
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    @property
    def num_known(self) -> int:
        return len(self._by_id)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._offline)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ModelNotFound, BadRequest, ContextTooLong, Overloaded."""
        state = self._states.get(request.model)
        if state is None:
            raise ModelNotFound(f"the model {request.model!r} is not served here", "model")
        if request.id in self._by_id:
            raise BadRequest(f"id: a request with id {request.id!r} is being served", "id")
        check_request(request, state, self._caches[state.kv_class])
        self._check_line(request)
        number = next(self._numbers)
        sequence = Sequence(request, state, self._settings.page_size, number)
        lines = self._lines_of(sequence)
        sequence.account = lines.tenant(request.tenant)
        check_quota(sequence, sequence.account)
        self._by_id[request.id] = self._by_number[number] = sequence
        lines.add(sequence)

    def _check_line(self, request: Request) -> None:
        waiting, most, tenant = self.num_waiting, self._settings.max_waiting, request.tenant
        if waiting >= most or (request.offline and not has_room(len(self._offline), waiting, most)):
            raise Overloaded(f"{waiting} requests wait already; try again later")
        own = self._waiting.num_of(tenant) + self._offline.num_of(tenant)
        quota = self._waiting.tenant(tenant).max_waiting
        if quota and own >= quota:
            raise TooManyRequests(
                f"{own} of your requests wait already, your quota; try again later"
            )
        if tenant and not has_room(own, waiting, most):
            raise TooManyRequests(
                f"{own} of your requests wait already, your share of {most}; try again later"
            )

    def _lines_of(self, sequence: Sequence) -> WaitingLines:
        return self._offline if sequence.is_offline else self._waiting

    def cancel(self, request_id: str) -> None:
        """Forget a request, whatever it is doing; unknown ids are ignored."""
        sequence = self._by_id.get(request_id)
        if sequence is not None:
            self.forget(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Drop a known sequence and give back what it holds."""
        del self._by_id[sequence.request.id], self._by_number[sequence.number]
        if sequence.kv is None:
            self._lines_of(sequence).remove(sequence)
        else:
            self._running.remove(sequence)
            if sequence.lane is None:
                self._release(sequence)
            else:
                self._in_lanes -= 1
                self._leaving.add(sequence)

    def awaits_token(self, sequence: Sequence) -> bool:
        """Whether all its rows are computed and it was neither ended nor cancelled meanwhile."""
        return self.knows(sequence) and not sequence.remaining

    def knows(self, sequence: Sequence) -> bool:
        """Whether the sequence is neither over nor cancelled."""
        return self._by_id.get(sequence.request.id) is sequence

    def plan(self, lanes: tuple[int, ...] = (0,)) -> tuple[Plan, View]:
        """What the policy decides on the next turn, and the view that it saw. Changes nothing.
        `lanes`: see `View`."""
        view = self.view(lanes)
        plan = self.policy.plan(view)
        if self.checks_plans:
            check(plan, self.view(lanes))
        return plan, view

    def view(self, lanes: tuple[int, ...] = (0,)) -> View:
        """What a policy may see now."""
        running = self._running
        if self._in_lanes:
            running = [sequence for sequence in running if sequence.lane is None]
        shared = (self._by_number, self._running, self._promised, self._settings.prefix_cache)
        return View(
            running=running,
            waiting=self._waiting.lines,
            sequences=self._by_number,
            pages=[PlannedPages(pool, cache, *shared) for pool, cache in enumerate(self._caches)],
            max_rows=self._max_rows(),
            max_sequences=self._settings.max_sequences - self._in_lanes - len(self._leaving),
            tenants=self._waiting.tenants,
            offline=Offline(self._offline.lines, self._offline.tenants),
            lanes=lanes,
            threads=self._threads,
        )

    def _max_rows(self) -> int:
        """Rows of this turn; fewer than allowed where a long turn would keep others waiting. An
        online request may come at any time, so turns with nothing but offline ones are short."""
        limit = self._settings.max_rows
        if self._budget is None:
            return limit
        prompts = [s for s in self._running if s.remaining > 1]
        online = next((s for s in prompts if not s.is_offline), None) or self._waiting.first()
        prompt = online or next(iter(prompts), None) or self._offline.first()
        if prompt is None:
            return limit
        singles = (s for s in self._running if s.remaining == 1)
        decoding = [_path(s) for s in singles if prompt.is_offline or not s.is_offline]
        if prompt.is_offline and not decoding:
            decoding = [_path(prompt)]
        return self._budget.rows(decoding, _path(prompt), limit)

    def apply(self, plan: Plan, view: View, sampled: torch.Tensor | None = None) -> dict[int, Turn]:
        """Take the pages that the plan needs; its rows as a turn for each lane that has some.
        `view`: what the plan was made of; `sampled`: see `make_turn`."""
        for number in plan.preempt:
            self._preempt(self._by_number[number])
        for number in plan.admit:  # before pages are taken, which may evict those it adopts
            sequence = self._by_number[number]
            pages = view.pages[sequence.pool]
            assert isinstance(pages, PlannedPages)
            self._admit(sequence, pages.prompt(sequence))
        grants: dict[int, Grants] = {}
        resumed: dict[int, dict[Work, torch.Tensor]] = {}
        for work in plan.work:
            sequence = self._by_number[work.sequence]
            assert sequence.kv is not None
            if work.first_stop == 0:
                self._caches[sequence.pool].grow(sequence.kv, work.start + work.rows)
            else:
                hidden = self._hidden.take(work.sequence, work.first_stop, work.rows)
                resumed.setdefault(work.lane, {})[work] = hidden
            grants.setdefault(work.lane, []).append((sequence, work))
        if len(view.lanes) > 1:
            self._enter_lanes(grants)
        return {lane: make_turn(own, resumed.get(lane), sampled) for lane, own in grants.items()}

    def _enter_lanes(self, grants: Mapping[int, Grants]) -> None:
        """Until a batch is through, policies do not see its sequences."""
        for lane, own in grants.items():
            sequences = {sequence for sequence, _ in own}
            self._in_lanes += len(sequences)
            for sequence in sequences:
                sequence.lane = lane

    def _leave_lanes(self, sequences: set[Sequence]) -> None:
        """Their batch is through; pages of those that are over are free now."""
        over = sequences & self._leaving
        self._leaving -= over
        self._in_lanes -= len(sequences) - len(over)
        for sequence in sequences:
            sequence.lane = None
        for sequence in over:
            self._release(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        """Back to the head of the line; its tokens become rows to compute again."""
        self.preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        sequence.restart(0)
        sequence.was_preempted = True
        self._lines_of(sequence).put_back(sequence)

    def _admit(self, sequence: Sequence, prompt: Prompt) -> None:
        state = sequence.state
        self._lines_of(sequence).admit(sequence)
        sequence.account.begin(sequence.most_pages)
        self._running.append(sequence)
        cache = self._caches[sequence.pool]
        sequence.kv = cache.open(state.kv, sequence.hashes, prompt.found)
        sequence.restart(prompt.first_row)
        if not sequence.num_charged:  # rows on known pages cost its tenant nothing
            sequence.num_charged = prompt.first_row
        if not sequence.is_offline:  # it may stand still: others must not wait for its pages
            sequence.pending_keys = prompt.keys
            self._promised.update(prompt.keys)
        self._count_admission(sequence, prompt.first_row)

    def _count_admission(self, sequence: Sequence, hit: int) -> None:
        if sequence.was_preempted:
            return
        sequence.cached_tokens = max(0, hit - sequence.num_virtual)
        if sequence.request.arrival:
            sequence.queue_seconds = time.monotonic() - sequence.request.arrival
        sequence.state.prompt_tokens += sequence.num_prompt
        self.prefix_queries += sequence.num_prompt
        self.prefix_hits += sequence.cached_tokens

    def advance(self, turn: Turn, paused: list[Paused]) -> None:
        """Book the rows of a turn that a lane is through with, keep the hidden states of those that
        paused, and offer the pages that are filled; pages of sequences that are over are free now.
        On a device that is right once they are launched: hops that read those pages come later."""
        self._turns += 1
        for sequence, work in zip(turn.sequences, turn.work, strict=True):
            assert sequence.kv is not None
            if work.start < sequence.num_given:
                sequence.account.charge(sequence.charge(work), 0)
            sequence.advance(work)
            sequence.state.last_turn = sequence.own_turn = self._turns
            self._publish(sequence, sequence.kv)
            if sequence.pending_keys and sequence.remaining == 0:
                self._keep_promise(sequence)
        for member, hidden in paused:
            work = turn.work[member]
            self._hidden.put(work.sequence, work.last_stop + 1, hidden)
        if turn.sequences[0].lane is not None:
            self._leave_lanes(set(turn.sequences))

    def settle(self, sequence: Sequence, token: int, revised: bool) -> None:
        """The token that the sequence expected is known. `revised`: the device took it for another
        until now, so a row begun with that one has to be computed again."""
        sequence.settle(token)
        sequence.account.charge(0, 1)
        if revised and sequence.num_begun == sequence.num_total:
            stop = sequence.take_back()
            if stop is not None:
                rows = self._hidden.num_rows(sequence.number, stop)
                hidden = self._hidden.take(sequence.number, stop, rows)
                if rows > 1:
                    self._hidden.put(sequence.number, stop, hidden[:-1])

    def _publish(self, sequence: Sequence, kv: SequenceKV) -> None:
        """Offer the pages that are computed and whose tokens, their names, are known."""
        cache = self._caches[sequence.pool]
        if sequence.num_computed < (kv.num_published + 1) * cache.page_size:
            return
        known = sequence.known_rows()
        cache.publish(kv, known, min(sequence.num_computed, len(known)))

    def _keep_promise(self, sequence: Sequence) -> None:
        self._promised.difference_update(sequence.pending_keys)
        sequence.pending_keys = ()

    def _release(self, sequence: Sequence) -> None:
        assert sequence.kv is not None
        self._publish(sequence, sequence.kv)  # a token may have become known since the last turn
        self._caches[sequence.pool].close(sequence.kv)
        sequence.account.end(sequence.most_pages)
        sequence.kv = None
        for rows in sequence.paused:
            self._hidden.drop(sequence.number, rows.stop)
        self._keep_promise(sequence)

    def check_books(self) -> None:
        """Raise AssertionError unless pages, slots and references balance (design law 10)."""
        for cache in self._caches:
            cache.check_books(idle=not self._running and not self._leaving)
        assert len(self._by_id) == len(self._running) + self.num_waiting
        running, pages = Counter[TenantState](), Counter[TenantState]()
        for sequence in (*self._running, *self._leaving):
            running[sequence.account] += 1
            pages[sequence.account] += sequence.most_pages
        for lines in (self._waiting, self._offline):
            for state in lines.tenants.values():
                assert (state.num_running, state.num_pages) == (running[state], pages[state])
        assert len(self._by_number) == len(self._by_id)
        assert self._running or self._leaving or not self._promised
        assert self._in_lanes == sum(s.lane is not None for s in self._running)
        if self._in_lanes or self._leaving:
            return  # lanes have taken hidden states
        waits = [(s.number, rows) for s in self._running for rows in s.paused]
        assert len(self._hidden) == len(waits)
        assert all(self._hidden.num_rows(n, rows.stop) == rows.rows for n, rows in waits)


def _path(sequence: Sequence) -> SequencePath:
    return SequencePath([stop.stop.span for stop in sequence.state.stops], sequence.num_computed)
