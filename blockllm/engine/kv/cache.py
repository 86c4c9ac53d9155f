"""KV memory of one KV shape: the tensor, the page tables of all sequences, and their pages.

    tensor  [pages, layers_per_page, 2 (key, value), kv_heads, page_size, head_dim]
    tables  [slots, bundles, page index] → page; a bundle is `layers_per_page` layers of a chain

Page 0 is spare: rows whose KV must not be written (their page is shared) write there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from blockllm.chain import Route
from blockllm.chain.spans import num_kv_layers
from blockllm.engine.kernels.cpu.memory import new_memory
from blockllm.engine.kv.pages import PageGroup, PagePool
from blockllm.engine.kv.prefix import PageHashes, upstream_keys


class KVShape(NamedTuple):
    """What two chains must agree on to draw from one pool."""

    num_kv_heads: int
    head_dim: int


class RouteKV(NamedTuple):
    """The part of a route that concerns KV: its blocks with layers, as runs of bundles."""

    first_bundle: tuple[int, ...]  # [blocks with KV]
    num_bundles: tuple[int, ...]  # [blocks with KV]
    upstream: tuple[bytes, ...]  # [blocks with KV], prefix index keys

    @property
    def total_bundles(self) -> int:
        return sum(self.num_bundles)


def route_kv(route: Route, layers_per_page: int) -> RouteKV:
    """Bundles and prefix keys of one route's blocks that keep KV."""
    first, count, keys, position = [], [], [], 0
    for entry, key in zip(route.chain.entries, upstream_keys(route.chain), strict=True):
        layers = num_kv_layers(entry.block)
        if layers:
            first.append(position)
            count.append(layers // layers_per_page)
            keys.append(key)
            position += layers // layers_per_page
    return RouteKV(tuple(first), tuple(count), tuple(keys))


class SequenceKV:
    """Pages that one sequence holds, per block; its row of the page tables is `slot`."""

    def __init__(self, route: RouteKV, hashes: PageHashes, slot: int) -> None:
        self.route = route
        self.hashes = hashes
        self.slot = slot
        self.groups: list[list[PageGroup]] = [[] for _ in route.num_bundles]
        self.num_published = 0
        self.room = 0  # tokens that the pages of every block hold


class KVCache:
    """Pages, tables and tensor of one KV shape. Only the engine loop touches it."""

    def __init__(
        self,
        shape: KVShape,
        layers_per_page: int,
        page_size: int,
        num_pages: int,
        table_size: tuple[int, int, int],  # slots, bundles, page indices
        device: torch.device,
        dtype: torch.dtype,
        reuse: bool = True,
    ) -> None:
        self.layers_per_page = layers_per_page
        self.page_size = page_size
        self.pool = PagePool(num_pages, reuse)
        size = (num_pages + 1, layers_per_page, 2, shape.num_kv_heads, page_size, shape.head_dim)
        on_host = device.type == "cpu"
        empty = (
            new_memory(*size, dtype=dtype)
            if on_host
            else torch.empty(size, device=device, dtype=dtype)
        )
        self.tensor = empty  # resident once written
        self.layers = self.tensor.unbind(1)  # views, by layer within a page
        self.tables = np.zeros(table_size, np.int32)
        # tokens of each block that lie on pages this sequence shares and must not write
        self.adopted = np.zeros(table_size[:2], np.int32)  # [slots, bundles]
        self._slots = list(range(table_size[0]))[::-1]

    def match(
        self, route: RouteKV, hashes: PageHashes, tokens: NDArray[np.int64]
    ) -> list[list[PageGroup]]:
        """Per block, the published groups that hold the leading tokens. Changes nothing."""
        keys = hashes.upto(tokens, len(tokens) // self.page_size)
        return [self.pool.find(upstream + key for key in keys) for upstream in route.upstream]

    def match_cost(self, found: list[list[PageGroup]]) -> int:
        """Pages that adopting the groups takes from `num_available`."""
        return sum(len(g.pages) for run in found for g in run if g.refs == 0)

    def open(self, route: RouteKV, hashes: PageHashes, found: list[list[PageGroup]]) -> SequenceKV:
        """Start a sequence on the groups of `match` (they must still be valid)."""
        kv = SequenceKV(route, hashes, self._slots.pop())
        for block, groups in enumerate(found):
            self.pool.hold(groups)
            first = route.first_bundle[block]
            bundles = slice(first, first + route.num_bundles[block])
            self.adopted[kv.slot, bundles] = len(groups) * self.page_size
            for group in groups:
                self._append(kv, block, group)
        kv.num_published = min((len(groups) for groups in found), default=0)
        return kv

    def missing(self, route: RouteKV, held: list[int], num_tokens: int) -> int:
        """Pages a sequence that holds `held` groups per block lacks to hold `num_tokens`."""
        want = -(-num_tokens // self.page_size)
        return sum(
            max(0, want - have) * bundles
            for have, bundles in zip(held, route.num_bundles, strict=True)
        )

    def grow(self, kv: SequenceKV, num_tokens: int) -> None:
        """Take pages so that the sequence can hold `num_tokens`."""
        if num_tokens <= kv.room:
            return
        want = -(-num_tokens // self.page_size)
        for block, groups in enumerate(kv.groups):
            while len(groups) < want:
                self._append(kv, block, self.pool.take(kv.route.num_bundles[block]))
        kv.room = want * self.page_size

    def publish(self, kv: SequenceKV, tokens: NDArray[np.int64], num_computed: int) -> None:
        """Offer the pages that `num_computed` tokens have filled to later sequences."""
        full = num_computed // self.page_size
        if full <= kv.num_published:
            return
        keys = kv.hashes.upto(tokens, full)
        for upstream, groups in zip(kv.route.upstream, kv.groups, strict=True):
            for page in range(kv.num_published, full):
                self.pool.publish(groups[page], upstream + keys[page])
        kv.num_published = full

    def close(self, kv: SequenceKV) -> None:
        """Release everything the sequence holds; published pages stay for reuse."""
        for groups in kv.groups:
            self.pool.release(groups)
        self.adopted[kv.slot] = 0
        self._slots.append(kv.slot)

    def _append(self, kv: SequenceKV, block: int, group: PageGroup) -> None:
        first, page = kv.route.first_bundle[block], len(kv.groups[block])
        self.tables[kv.slot, first : first + len(group.pages), page] = group.pages
        kv.groups[block].append(group)

    def check_books(self, idle: bool = False) -> None:
        """Raise AssertionError unless pages and slots balance."""
        self.pool.check_books(idle)
        assert len(set(self._slots)) == len(self._slots)
        if idle:
            assert len(self._slots) == len(self.tables), "a slot is still taken while idle"
