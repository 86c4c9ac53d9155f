"""The engine: plan → apply → start → settle → emit.

One turn gives every admitted sequence its rows and drives them through their routes. All rows that
wait at a span go through it together, whichever models they belong to. Where turns overlap, a
turn's tokens are read behind the launch of the next one. Lanes may compute on threads of their own;
everything here runs on one, that of the agent that owns the engine and calls `step` while there is
work.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from typing import Final

from blockllm.config import EngineSettings
from blockllm.core import Finish, Request, TokenEvent
from blockllm.engine.batch.hops import HopCursor
from blockllm.engine.build import ChainStore, build
from blockllm.engine.costs.turn_budget import ObservedBudget
from blockllm.engine.lanes import Done, Runner, finish_some, make_lanes
from blockllm.engine.run.pending import PendingTokens, overlaps, sample_rows
from blockllm.engine.sampling import Sampled
from blockllm.engine.scheduler import Scheduler
from blockllm.engine.sequence.finish import finish_reason
from blockllm.engine.sequence.sequence import Sequence
from blockllm.engine.stats import HopCounters, snapshot
from blockllm.observability.stats import EngineStats
from blockllm.observability.timeline import OFF, Timeline
from blockllm.zoo.reports import Progress, silent


class Engine:
    """Serves the chains of a zoo on one device."""

    def __init__(
        self,
        zoo: ChainStore,
        models: SequenceOf[str] | None = None,
        settings: EngineSettings | None = None,
        timeline: Timeline = OFF,
        progress: Progress = silent,
    ) -> None:
        """Load `models` (default: all). Raises UnknownModel, OutOfMemory, ConfigError."""
        self._timeline = timeline
        self.settings = settings or EngineSettings()
        self.parts: Final = build(zoo, models, self.settings, progress)
        parts = self.parts
        self._scheduler = Scheduler(
            parts.states,
            parts.caches,
            self.settings,
            parts.budget,
            parts.row_limits,
            parts.kernels.threads,
        )
        self._lanes = make_lanes(parts.num_lanes, self._make_runner, timeline)
        self._counters = HopCounters(len(self.parts.plan.spans))
        # what was sampled last, if it is not collected yet
        self._pending: PendingTokens | None = None
        self._overlaps = overlaps(self.settings.overlap, parts.caches[0].tensor.device)
        self._observed = parts.budget if isinstance(parts.budget, ObservedBudget) else None

    def _make_runner(self, timeline: Timeline) -> Runner:
        executor, states = self.parts.executor, list(self.parts.states.values())
        return Runner(executor, HopCursor(states, timeline, executor.joins_spans), timeline)

    @property
    def has_work(self) -> bool:
        return self._scheduler.num_known > 0 or any(lane.threads for lane in self._lanes)

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ModelNotFound, BadRequest, ContextTooLong, Overloaded."""
        self._scheduler.submit(request)

    def cancel(self, request_id: str) -> None:
        """Forget a request, whatever it is doing; unknown ids are ignored."""
        self._scheduler.cancel(request_id)

    def step(self) -> list[TokenEvent]:
        """Start what is planned and settle what is computed: at most one new token per sequence. []
        when there is nothing to do, and where turns overlap, when the first was just launched."""
        with self._timeline.part("turn"):
            self._start()
            done = finish_some(self._lanes)
            for batch in done:
                self._book(batch)
            events = self._collect()  # of the turn before, while the device works on this one
            for batch in done:
                self._sample(batch)
                if not self._overlaps:
                    events += self._collect()
        return events

    def _start(self) -> None:
        """Plan batches for the lanes that are free, and start them."""
        lanes = tuple(lane.threads for lane in self._lanes)
        if all(lanes):
            return
        with self._timeline.part("admit"):
            plan, view = self._scheduler.plan(lanes)
        with self._timeline.part("rows"):
            turns = self._scheduler.apply(plan, view, self._pending and self._pending.sampled)
        for lane, turn in turns.items():
            threads = plan.shares[lane] if plan.shares else self.parts.kernels.threads
            self._lanes[lane].start(turn, threads)

    def _book(self, done: Done) -> None:
        """The rows of a batch have passed their stops."""
        for hop in done.hops:
            self._counters.count(hop)
        self._counters.turns += 1
        with self._timeline.part("advance"):
            self._scheduler.advance(done.turn, done.paused)
        batch = done.turn.batch
        if self._observed is not None and batch.has_prompts and not self._overlaps:
            self._observed.observe(len(batch.tokens), done.seconds)

    def _sample(self, done: Done) -> None:
        """Choose what follows the rows of a batch."""
        with self._timeline.part("sample"):
            self._pending = sample_rows(
                done.turn, done.logits, self._scheduler.awaits_token, self.parts.kernels
            )

    def _collect(self) -> list[TokenEvent]:
        """Tell what the turn in flight has sampled."""
        pending, self._pending = self._pending, None
        if pending is None:
            return []
        with self._timeline.part("sample"):
            found = list(pending.collect())
        with self._timeline.part("emit"):
            return [self._add_token(*each) for each in found if self._scheduler.knows(each[0])]

    def _add_token(self, sequence: Sequence, sampled: Sampled) -> TokenEvent:
        if sampled.token is None:
            self._scheduler.forget(sequence)
            reason = "the model produced logits that are not finite"
            return TokenEvent(sequence.request.id, finish=Finish.ERROR, error=reason)
        self._scheduler.settle(sequence, sampled.token, sampled.revised)
        sequence.state.generation_tokens += 1
        finish = finish_reason(sequence, sampled.token)
        if finish is not None:
            self._scheduler.forget(sequence)
        first = sequence.num_generated == 1
        return TokenEvent(
            request=sequence.request.id,
            token=sampled.token,
            logprobs=sampled.logprobs,
            finish=finish,
            cached_tokens=sequence.cached_tokens if first else 0,
            queue_seconds=sequence.queue_seconds if first else 0.0,
        )

    def stats(self) -> EngineStats:
        """A snapshot of the books."""
        return snapshot(self.parts, self._scheduler, self._counters)

    def check_books(self) -> None:
        """Raise AssertionError unless pages, slots and references balance (design law 10)."""
        self._scheduler.check_books()
