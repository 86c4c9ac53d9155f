"""Log-probabilities of given tokens under served models, through the spans that serve them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.config import EngineSettings
from blockllm.core import Request, Sampling
from blockllm.engine.batch.hops import HopCursor
from blockllm.engine.batch.turn import make_turn
from blockllm.engine.build import ChainStore, Parts, build
from blockllm.engine.kv.cache import KVCache
from blockllm.engine.run.rows import run_rows
from blockllm.engine.sequence.finish import check_request
from blockllm.engine.sequence.sequence import RouteState, Sequence
from blockllm.engine.work import full_work
from blockllm.errors import EngineError, ModelNotFound

# positions whose distributions are held at once: 64 of 150 000 tokens take 38 MB
_ROWS = 64


class Scorer:
    """Models loaded for scoring. Every call computes alone: nothing is kept between calls."""

    def __init__(
        self, zoo: ChainStore, models: SequenceOf[str], settings: EngineSettings | None = None
    ) -> None:
        """Load `models`. Raises UnknownModel, OutOfMemory, ConfigError."""
        self._parts = build(
            zoo, models, settings or EngineSettings(prefix_cache=False, max_sequences=2)
        )
        self._cursor = HopCursor(list(self._parts.states.values()))

    def score(self, model: str, tokens: SequenceOf[int]) -> NDArray[np.float32]:
        """Log-probability of each token but the first, given those before it. [n - 1]

        Raises what `distributions` raises.
        """
        chosen = []
        found = self.distributions(model, tokens[:-1])
        for rows, wanted in zip(found, _targets(tokens), strict=True):
            chosen.append(rows.gather(1, wanted[:, None])[:, 0])
        scores: NDArray[np.float32] = torch.cat(chosen).numpy()
        return scores

    @torch.inference_mode()
    def distributions(self, model: str, tokens: SequenceOf[int]) -> Iterator[torch.Tensor]:
        """Log-probabilities of the token that follows each of `tokens`, on the CPU, in pieces of
        up to 64 positions. [positions, vocab] fp32

        Raises ModelNotFound, BadRequest, ContextTooLong; EngineError for values not finite.
        """
        state = self._state(model)
        cache = self._parts.caches[state.kv_class]
        request = Request("score", model, tuple(tokens), Sampling(max_tokens=1))
        check_request(request, state, cache)
        sequence = Sequence(request, state, cache.page_size)
        sequence.kv = cache.open(state.kv, sequence.hashes, [[] for _ in state.kv.num_bundles])
        try:
            while sequence.num_computed < sequence.num_virtual:
                self._advance(sequence, cache, sequence.num_virtual)
            while sequence.remaining:
                logits = self._advance(sequence, cache, sequence.num_total)
                if not bool(torch.isfinite(logits).all()):
                    raise EngineError(f"the model {model!r} produced logits that are not finite")
                yield logits.float().log_softmax(-1).cpu()
        finally:
            cache.close(sequence.kv)

    def vocab_size(self, model: str) -> int:
        """How many tokens the model tells apart; raises ModelNotFound."""
        return self._state(model).route.chain.vocab_size

    def _state(self, model: str) -> RouteState:
        state = self._parts.states.get(model)
        if state is None:
            raise ModelNotFound(f"the model {model!r} is not loaded", "model")
        return state

    def _advance(self, sequence: Sequence, cache: KVCache, end: int) -> torch.Tensor:
        """Compute the next rows of the sequence, before `end`; their logits. [rows, vocab]"""
        rows = min(end - sequence.num_computed, _ROWS)
        return run_alone(self._parts, self._cursor, cache, sequence, rows)


def run_alone(
    parts: Parts, cursor: HopCursor, cache: KVCache, sequence: Sequence, rows: int
) -> torch.Tensor:
    """Compute the next `rows` of a sequence in a turn of its own; logits of each. [rows, vocab]"""
    assert sequence.kv is not None and rows > 0
    cache.grow(sequence.kv, sequence.num_computed + rows)
    turn = make_turn([(sequence, full_work(sequence, rows))], wants_every_row=True)
    ((_, logits),) = deque(
        run_rows(parts.executor, cursor, turn.batch), maxlen=1
    )  # behind the head
    sequence.restart(sequence.num_computed + rows)
    return logits


class Comparison(NamedTuple):
    """How far a model's next-token distributions are from a reference's, over `num_tokens`."""

    perplexity: float
    reference_perplexity: float
    kl: float  # mean of KL(reference || model), nats
    agreement: float  # share of positions with the same most likely token
    num_tokens: int


def compare(
    scorer: Scorer, model: str, reference: str, windows: Iterable[SequenceOf[int]]
) -> Comparison:
    """Compare on windows of tokens, each scored on its own from its second token on.

    Raises EngineError when no window has two tokens or the two have different vocabularies, and
    what `Scorer.distributions` raises.
    """
    sizes = [scorer.vocab_size(name) for name in (model, reference)]
    if sizes[0] != sizes[1]:
        raise EngineError(
            f"{model} has {sizes[0]} tokens and {reference} {sizes[1]}: their distributions cannot "
            "be compared"
        )
    sums = torch.zeros(4, dtype=torch.float64)  # losses of both, divergence, agreements
    count = 0
    for window in windows:
        if len(window) < 2:
            continue
        ours, theirs = (scorer.distributions(name, window[:-1]) for name in (model, reference))
        for piece in zip(ours, theirs, _targets(window), strict=True):
            sums += _sums(*piece)
        count += len(window) - 1
    if not count:
        raise EngineError("nothing to compare: the text has no two tokens")
    loss, reference_loss, kl, agreement = (sums / count).tolist()
    return Comparison(math.exp(loss), math.exp(reference_loss), kl, agreement, count)


def _targets(tokens: SequenceOf[int]) -> list[torch.Tensor]:
    """What follows each token but the last, in the pieces of `distributions`."""
    return [torch.tensor(tokens[i : i + _ROWS]) for i in range(1, len(tokens), _ROWS)]


def _sums(ours: torch.Tensor, theirs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # ours, theirs: [rows, vocab] log-probabilities; targets: [rows]
    picked = [-rows.gather(1, targets[:, None]).double().sum() for rows in (ours, theirs)]
    divergence = (theirs.exp() * (theirs - ours)).sum(dtype=torch.float64)
    agreements = (ours.argmax(-1) == theirs.argmax(-1)).sum().double()
    return torch.stack([*picked, divergence, agreements])
