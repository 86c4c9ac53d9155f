"""What a plan takes from one KV cache, counted before any of it is done. Changes no cache."""

from __future__ import annotations

from collections.abc import Mapping, Set
from collections.abc import Sequence as SequenceOf
from functools import cached_property
from typing import NamedTuple

from blockllm.engine.kv.cache import KVCache
from blockllm.engine.kv.pages import PageGroup
from blockllm.engine.sequence.sequence import Sequence
from blockllm.engine.work import Admission, Known

Found = list[list[PageGroup]]  # per block


class Prompt(NamedTuple):
    """What admission finds out about a waiting sequence."""

    found: Found  # groups that hold its leading tokens
    first_row: int
    keys: tuple[bytes, ...]  # of the pages that it will compute and publish


class PlannedPages:
    """One cache as a plan sees it; see `work.Pages`. Good for one plan."""

    def __init__(
        self,
        pool: int,
        cache: KVCache,
        sequences: Mapping[int, Sequence],
        running: SequenceOf[Sequence],
        promised: Set[bytes],
        reuse: bool,
    ) -> None:
        """`sequences`: all known ones by number; `promised`: keys of pages that running prompts
        will publish."""
        self._cache, self._sequences, self._reuse = cache, sequences, reuse
        self._pool, self._all_running = pool, running
        self.available = cache.pool.num_available
        self._promised, self._adds = promised, set[bytes]()
        self._adopted: set[int] = set()  # groups without a reference that the plan adopts
        self._prompts: dict[int, Prompt] = {}

    @cached_property
    def _running(self) -> dict[int, Sequence]:
        """Those with pages of this cache; most turns of decoding never ask."""
        return {s.number: s for s in self._all_running if s.pool == self._pool}

    @property
    def reserve(self) -> int:
        return sum(sequence.state.kv.total_bundles for sequence in self._running.values())

    @property
    def is_idle(self) -> bool:
        return not self._running

    def lacking(self, known: Known, rows: int) -> int:
        sequence = self._sequences[known.number]
        assert sequence.kv is not None
        num_tokens = sequence.num_begun + rows
        if num_tokens <= sequence.kv.room:
            return 0
        held = [len(groups) for groups in sequence.kv.groups]
        return self._cache.missing(sequence.state.kv, held, num_tokens)

    def held(self, known: Known) -> int:
        sequence = self._sequences[known.number]
        assert sequence.kv is not None
        groups = (group for run in sequence.kv.groups for group in run)
        return sum(len(group.pages) for group in groups if group.refs == 1)

    def take(self, count: int) -> None:
        self.available -= count

    def release(self, known: Known) -> None:
        self.available += self.held(known)
        del self._running[known.number]

    def admission(self, known: Known) -> Admission:
        sequence = self._sequences[known.number]
        prompt, kv = self.prompt(known), sequence.state.kv
        held = [len(groups) for groups in prompt.found]
        tokens = sequence.known_rows()
        return Admission(
            first_row=prompt.first_row,
            num_new=len(tokens) - prompt.first_row,
            pages=self._adopts(prompt.found) + self._cache.missing(kv, held, len(tokens) + 1),
            blocked=bool(prompt.keys) and self._is_promised(prompt.keys[0]),
        )

    def admit(self, known: Known, rows: int) -> None:
        sequence, prompt = self._sequences[known.number], self.prompt(known)
        self.available -= self._adopts(prompt.found)
        self._adopted.update(id(g) for run in prompt.found for g in run if g.refs == 0)
        held = [len(groups) for groups in prompt.found]
        end = prompt.first_row + rows
        self.available -= self._cache.missing(sequence.state.kv, held, end)
        self._adds.update(prompt.keys)
        self._running[known.number] = sequence

    def prompt(self, known: Known) -> Prompt:
        """What admission finds of a waiting sequence's tokens in the prefix index."""
        found = self._prompts.get(known.number)
        if found is None:
            found = self._prompts[known.number] = self._find(self._sequences[known.number])
        return found

    def _find(self, sequence: Sequence) -> Prompt:
        cache, tokens = self._cache, sequence.known_rows()
        found = cache.match(sequence.state.kv, sequence.hashes, tokens)
        pages = min(len(groups) for groups in found)
        # the last token is computed even if its page is known: its logits are wanted
        first_row = min(pages * cache.page_size, len(tokens) - 1)
        if not self._reuse:
            return Prompt(found, first_row, ())
        upstream = sequence.state.kv.upstream[-1]
        hashes = sequence.hashes.upto(tokens, len(tokens) // cache.page_size)
        return Prompt(found, first_row, tuple(upstream + key for key in hashes[pages:]))

    def _is_promised(self, key: bytes) -> bool:
        return key in self._promised or key in self._adds

    def _adopts(self, found: Found) -> int:
        """Pages that adopting the groups takes from `available`."""
        groups = (group for run in found for group in run)
        free = (g for g in groups if g.refs == 0 and id(g) not in self._adopted)
        return sum(len(group.pages) for group in free)
