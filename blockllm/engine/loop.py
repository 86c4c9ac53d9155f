"""The engine: admit → pick (span, rows) → run hop → hand over or sample → emit.

One turn gives every admitted sequence its rows and drives them through their routes. All rows that
wait at a span go through it together, whichever models they belong to. Where turns overlap, a
turn's tokens are read behind the launch of the next one. Everything here runs on one thread; the
agent that owns the engine calls `step` while there is work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence as SequenceOf
from typing import Final

import torch

from blockllm.config import EngineSettings
from blockllm.core import Finish, Request, TokenEvent
from blockllm.engine.batch.hops import HopCursor
from blockllm.engine.batch.turn import Turn
from blockllm.engine.build import ChainStore, build
from blockllm.engine.costs.turn_budget import ObservedBudget
from blockllm.engine.run.pending import Logits, PendingTokens, overlaps, sample_rows
from blockllm.engine.run.rows import run_rows
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
            parts.states, parts.caches, self.settings, parts.budget, parts.row_limits
        )
        joins = parts.executor.joins_spans
        self._cursor = HopCursor(list(parts.states.values()), timeline, joins)
        self._counters = HopCounters(len(self.parts.plan.spans))
        self._pending: PendingTokens | None = (
            None  # what was sampled last, if it is not collected yet
        )
        self._overlaps = overlaps(self.settings.overlap, parts.caches[0].tensor.device)
        self._observed = parts.budget if isinstance(parts.budget, ObservedBudget) else None

    @property
    def has_work(self) -> bool:
        return self._scheduler.num_known > 0

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ModelNotFound, BadRequest, ContextTooLong, Overloaded."""
        self._scheduler.submit(request)

    def cancel(self, request_id: str) -> None:
        """Forget a request, whatever it is doing; unknown ids are ignored."""
        self._scheduler.cancel(request_id)

    def step(self) -> list[TokenEvent]:
        """One turn: at most one new token per sequence. [] when there is nothing to do, and where
        turns overlap, when the first one has just been launched."""
        part, start = self._timeline.part, time.perf_counter()
        with part("turn"):
            with part("admit"):
                plan, view = self._scheduler.plan()
            with part("rows"):
                turn = self._scheduler.apply(plan, view, self._pending and self._pending.sampled)
            launched = self._launch(turn) if turn else None
            events = self._collect()  # of the turn before, while the device works on this one
            if launched is not None:
                with part("sample"):
                    self._pending = sample_rows(
                        *launched, self._scheduler.awaits_token, self.parts.kernels
                    )
            if self._overlaps:
                return events
            events = self._collect()
        if launched is not None and self._observed is not None and launched[0].batch.has_prompts:
            self._observed.observe(len(launched[0].batch.tokens), time.perf_counter() - start)
        return events

    @torch.inference_mode()
    def _launch(self, turn: Turn) -> tuple[Turn, Logits]:
        """Drive the rows of a turn through their stops."""
        logits, executor = Logits(), self.parts.executor
        for hop, out in run_rows(executor, self._cursor, turn.batch, self._timeline):
            self._counters.count(hop)
            if hop.plan.has_head:
                logits.append((hop, out))
        self._counters.turns += 1
        with self._timeline.part("advance"):
            self._scheduler.advance(turn, self._cursor.paused)
        return turn, logits

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
