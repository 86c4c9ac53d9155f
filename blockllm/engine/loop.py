"""The engine: admit → pick (span, rows) → run hop → hand over or sample → emit.

One turn gives every admitted sequence its rows and drives them through their routes. Whoever
waits at a span goes through it together, whichever model they came from. Everything here runs
on one thread; the agent that owns the engine calls `step` while there is work.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence as SequenceOf

import numpy as np
import torch

from blockllm.config import EngineSettings
from blockllm.core import EngineStats, Finish, Request, TokenEvent
from blockllm.engine.batch import Hop, Packet, Turn
from blockllm.engine.finish import finish_reason
from blockllm.engine.queues import SpanQueues
from blockllm.engine.roster import Roster
from blockllm.engine.sampling import Sampled, sample
from blockllm.engine.sequence import Sequence
from blockllm.engine.setup import ChainStore, build
from blockllm.engine.stats import HopCounters, snapshot

Logits = list[tuple[Hop, torch.Tensor]]  # of the members of a hop that want them


class Engine:
    """Serves the chains of a zoo on one device."""

    def __init__(
        self,
        zoo: ChainStore,
        models: SequenceOf[str] | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        """Load `models` (default: all). Raises UnknownModel, OutOfMemory, ConfigError."""
        self.settings = settings or EngineSettings()
        self._parts = build(zoo, models, self.settings)
        self._roster = Roster(self._parts.states, self._parts.caches, self.settings)
        self._counters = HopCounters(len(self._parts.plan.spans))

    @property
    def has_work(self) -> bool:
        return self._roster.num_known > 0

    def submit(self, request: Request) -> None:
        """Queue a request. Raises ModelNotFound, BadRequest, ContextTooLong, Overloaded."""
        self._roster.submit(request)

    def cancel(self, request_id: str) -> None:
        """Forget a request, whatever it is doing; unknown ids are ignored."""
        self._roster.cancel(request_id)

    def step(self) -> list[TokenEvent]:
        """One turn: at most one new token per sequence. [] when there is nothing to do."""
        grants = self._roster.grant()
        if not grants:
            return []
        turn, queues, logits = Turn(grants), SpanQueues(), Logits()
        self._enter(queues, turn, np.arange(len(grants)), None)
        while hop := queues.pick(turn):
            out = self._parts.executor.run(hop, self._parts.plan.spans[hop.span])
            self._counters.count(hop)
            if self._parts.has_head[hop.span]:
                logits.append((hop, out))
            else:
                turn.stops[hop.members] += 1
                self._enter(queues, turn, hop.members, out)
        self._counters.turns += 1
        self._roster.advance(turn)
        return self._emit(turn, logits)

    def _enter(
        self, queues: SpanQueues, turn: Turn, members: np.ndarray, hidden: torch.Tensor | None
    ) -> None:
        """Put sequences into the queues of the spans they wait for, runs of rows at a time."""
        stops = [turn.sequences[i].state.stops[turn.stops[i]] for i in members]
        edges = [i for i in range(1, len(stops)) if stops[i].place != stops[i - 1].place]
        ends = [0, *np.cumsum(turn.counts[members]).tolist()]
        for left, right in itertools.pairwise([0, *edges, len(stops)]):
            part = None if hidden is None else hidden[ends[left] : ends[right]]
            queues.put(stops[left].place, stops[left].stop.depth, Packet(members[left:right], part))

    def _emit(self, turn: Turn, logits: Logits) -> list[TokenEvent]:
        """Sample one token for each sequence whose rows are all computed."""
        by_vocab: dict[int, Logits] = {}
        for hop, part in logits:
            by_vocab.setdefault(part.shape[-1], []).append((hop, part))
        events: list[TokenEvent] = []
        for parts in by_vocab.values():
            joined = parts[0][1] if len(parts) == 1 else torch.cat([part for _, part in parts])
            members = np.concatenate([h.members[turn.wants_logits[h.members]] for h, _ in parts])
            if len(members):
                sequences = [turn.sequences[i] for i in members]
                sampled = sample(joined, sequences)
                events += map(self._add_token, sequences, sampled)
        return events

    def _add_token(self, sequence: Sequence, sampled: Sampled) -> TokenEvent:
        if sampled.token is None:
            self._roster.forget(sequence)
            reason = "the model produced logits that are not finite"
            return TokenEvent(sequence.request.id, finish=Finish.ERROR, error=reason)
        sequence.append(sampled.token)
        sequence.state.generation_tokens += 1
        finish = finish_reason(sequence, sampled.token)
        if finish is not None:
            self._roster.forget(sequence)
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
        return snapshot(self._parts, self._roster, self._counters)

    def check_books(self) -> None:
        """Raise AssertionError unless pages, slots and references balance (design law 10)."""
        self._roster.check_books()
