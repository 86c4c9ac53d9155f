"""The page pool and the prefix index of one KV shape: the owners of pages, and no tensors.

A *page group* is what one block needs for one run of `page_size` tokens: one page for every
`layers_per_page` layers of the block. Every group is in exactly one state:

    held    refs > 0                         used by running sequences
    cached  refs = 0, key in the index       kept for reuse, evicted oldest first
    free    not a group: its pages lie on the pool's stack

Books: pages held + cached + free = all pages but the spare one (page 0 swallows writes that
must not happen, see `kv/cache.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Pages = NDArray[np.int32]


class PageGroup:
    """Pages of one block for one run of tokens; `key` is set once its content is published."""

    __slots__ = ("key", "pages", "refs")

    def __init__(self, pages: Pages) -> None:
        self.pages = pages  # [layers of the block / layers_per_page]
        self.refs = 1
        self.key: bytes | None = None


class PagePool:
    """Owns all pages; hands out groups, keeps published ones for reuse, evicts the oldest."""

    def __init__(self, num_pages: int, reuse: bool = True) -> None:
        self.num_pages = num_pages
        self._reuse = reuse
        self._stack = np.arange(num_pages, 0, -1, dtype=np.int32)
        self._num_free = num_pages
        self._index: dict[bytes, PageGroup] = {}
        self._cached: dict[bytes, PageGroup] = {}  # refs = 0, oldest first
        self._num_cached = 0
        self._num_held = 0

    @property
    def num_free(self) -> int:
        return self._num_free

    @property
    def num_cached(self) -> int:
        return self._num_cached

    @property
    def num_available(self) -> int:
        """Pages that `take` can hand out: free ones, and cached ones by eviction."""
        return self._num_free + self._num_cached

    def take(self, count: int) -> PageGroup:
        """A new group of `count` pages with one reference. The caller has checked
        `num_available`."""
        while self._num_free < count:
            self._evict_oldest()
        self._num_free -= count
        self._num_held += count
        return PageGroup(self._stack[self._num_free : self._num_free + count].copy())

    def find(self, keys: Iterable[bytes]) -> list[PageGroup]:
        """Groups published under the leading keys, up to the first miss. Changes nothing; the
        result is valid until the next `take`."""
        found = []
        for key in keys:
            group = self._index.get(key)
            if group is None:
                break
            found.append(group)
        return found

    def hold(self, groups: Iterable[PageGroup]) -> None:
        """Add a reference to each group; cached ones leave the eviction order."""
        for group in groups:
            if group.refs == 0:
                assert group.key is not None
                del self._cached[group.key]
                self._num_cached -= len(group.pages)
                self._num_held += len(group.pages)
            group.refs += 1

    def release(self, groups: Sequence[PageGroup]) -> None:
        """Drop a reference to each group. The last of a run is the first to be evicted later,
        since its key is useless without the ones before it."""
        for group in reversed(groups):
            group.refs -= 1
            assert group.refs >= 0, "page group released twice"
            if group.refs:
                continue
            self._num_held -= len(group.pages)
            if group.key is None:
                self._give_back(group)
            else:
                self._cached[group.key] = group
                self._num_cached += len(group.pages)

    def publish(self, group: PageGroup, key: bytes) -> None:
        """Offer a held, completely computed group for reuse. If the key is taken already, the
        group stays private."""
        if self._reuse and group.key is None and key not in self._index:
            group.key = key
            self._index[key] = group

    def _evict_oldest(self) -> None:
        assert self._cached, "page pool exhausted: the caller must check num_available"
        key, group = next(iter(self._cached.items()))
        del self._cached[key], self._index[key]
        self._num_cached -= len(group.pages)
        self._give_back(group)

    def _give_back(self, group: PageGroup) -> None:
        count = len(group.pages)
        self._stack[self._num_free : self._num_free + count] = group.pages
        self._num_free += count

    def check_books(self, idle: bool = False) -> None:
        """Raise AssertionError unless owned + free = total; when idle, nothing may be held."""
        assert self._num_free + self._num_cached + self._num_held == self.num_pages
        assert sum(len(g.pages) for g in self._cached.values()) == self._num_cached
        assert all(g.refs == 0 and self._index[k] is g for k, g in self._cached.items())
        free = self._stack[: self._num_free]
        cached = [page for g in self._cached.values() for page in g.pages]
        assert len(np.unique(np.concatenate([free, np.array(cached, np.int32)]))) == (
            self._num_free + self._num_cached
        ), "a page is owned twice"
        if idle:
            assert self._num_held == 0, f"{self._num_held} pages still held while idle"
            assert len(self._index) == len(self._cached)
