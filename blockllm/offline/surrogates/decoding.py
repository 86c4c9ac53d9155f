"""A model that is decoded step by step and can be set back: what speculation needs of a chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.config import EngineSettings
from blockllm.core import Request, Sampling
from blockllm.engine.batch.hops import HopCursor
from blockllm.engine.build import ChainStore, Parts, build
from blockllm.engine.kv.pages import PageGroup
from blockllm.engine.score import run_alone
from blockllm.engine.sequence.finish import check_request
from blockllm.engine.sequence.sequence import Sequence as EngineSequence


def load(zoo: ChainStore, models: Sequence[str]) -> Parts:
    """Models for decoding. Raises UnknownModel, OutOfMemory, ConfigError."""
    return build(zoo, models, EngineSettings(prefix_cache=False, max_sequences=len(models) + 1))


class Decoding:
    """One sequence of one model, on real pages through the real spans. Close it after use."""

    def __init__(self, parts: Parts, model: str, prompt: Sequence[int], max_tokens: int) -> None:
        """Start before the prompt; nothing is computed yet. Raises BadRequest, ContextTooLong."""
        state = parts.states[model]
        self._parts, self._cache = parts, parts.caches[state.kv_class]
        self._queues = HopCursor(list(parts.states.values()))
        request = Request(model, model, tuple(prompt), Sampling(max_tokens=max_tokens))
        check_request(request, state, self._cache)
        self._sequence = EngineSequence(request, state, self._cache.page_size)
        nothing_known: list[list[PageGroup]] = [[] for _ in state.kv.num_bundles]
        self._sequence.kv = self._cache.open(state.kv, self._sequence.hashes, nothing_known)

    @property
    def tokens(self) -> list[int]:
        """The prompt and what was added."""
        return [int(token) for token in self._sequence.known_tokens()]

    def add(self, token: int) -> None:
        """Add a token that is not computed yet."""
        self._sequence.append(token)

    def set_back(self, num_tokens: int) -> None:
        """Forget all tokens but the first `num_tokens`; their keys and values are written over."""
        sequence = self._sequence
        sequence.num_total = num_tokens
        sequence.restart(min(sequence.num_computed, num_tokens))

    @torch.inference_mode()
    def advance(self) -> torch.Tensor:
        """Compute every token not computed yet; logits of what follows each. [rows, vocab]"""
        rows = self._sequence.remaining
        return run_alone(self._parts, self._queues, self._cache, self._sequence, rows)

    def close(self) -> None:
        """Give the pages back."""
        assert self._sequence.kv is not None
        self._cache.close(self._sequence.kv)
