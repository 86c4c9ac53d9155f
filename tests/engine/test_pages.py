"""The page pool against a plain model of it: every page is held, cached or free, never two."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from blockllm.engine.kv.pages import PageGroup, PagePool

NUM_PAGES = 12


class PoolMachine(RuleBasedStateMachine):
    """Random takes, holds, publications and releases; the model keeps plain dicts and lists."""

    groups = Bundle("groups")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.refs: dict[PageGroup, int] = {}
        self.published: dict[bytes, PageGroup] = {}
        self.eviction: list[bytes] = []  # cached keys, oldest first

    @rule(target=groups, count=st.integers(1, 3))
    def take(self, count: int) -> PageGroup | None:
        if self.pool.num_available < count:
            return None
        free = self.pool.num_free
        while free < count:
            key = self.eviction.pop(0)
            free += len(self.published.pop(key).pages)
        group = self.pool.take(count)
        self.refs[group] = 1
        return group

    @rule(group=groups, key=st.integers(0, 5))
    def publish(self, group: PageGroup | None, key: int) -> None:
        if group is None or not self.refs.get(group):
            return
        name = bytes([key])
        if group.key is None and name not in self.published:
            self.published[name] = group
        self.pool.publish(group, name)

    @rule(target=groups, keys=st.lists(st.integers(0, 5), max_size=3, unique=True))
    def find_and_hold(self, keys: list[int]) -> PageGroup | None:
        names = [bytes([key]) for key in keys]
        expected = []
        for name in names:
            if name not in self.published:
                break
            expected.append(self.published[name])
        found = self.pool.find(names)
        assert found == expected
        self.pool.hold(found)
        for group in found:
            self.refs[group] = self.refs.get(group, 0) + 1
            if group.key in self.eviction:
                self.eviction.remove(group.key)
        for group in found[1:]:
            self.drop(group)
        return found[0] if found else None

    @rule(group=consumes(groups))
    def release(self, group: PageGroup | None) -> None:
        if group is not None and self.refs.get(group):
            self.drop(group)

    def drop(self, group: PageGroup) -> None:
        self.pool.release([group])
        self.refs[group] -= 1
        if not self.refs[group]:
            del self.refs[group]
            if group.key is not None:
                self.eviction.append(group.key)

    @invariant()
    def books_balance(self) -> None:
        self.pool.check_books(idle=not self.refs)
        held = [page for group in self.refs for page in group.pages]
        assert len(held) == len(set(held))
        assert 0 not in held, "the spare page was handed out"
        cached = sum(len(self.published[key].pages) for key in self.eviction)
        assert self.pool.num_cached == cached
        assert self.pool.num_free == NUM_PAGES - len(held) - cached


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_the_tail_of_a_run_is_evicted_before_its_head() -> None:
    pool = PagePool(3)
    run = [pool.take(1) for _ in range(3)]
    for i, group in enumerate(run):
        pool.publish(group, bytes([i]))
    pool.release(run)
    pool.take(1)
    assert pool.find([b"\0", b"\1", b"\2"]) == run[:2]


def test_without_reuse_nothing_is_published() -> None:
    pool = PagePool(2, reuse=False)
    group = pool.take(2)
    pool.publish(group, b"k")
    pool.release([group])
    assert pool.find([b"k"]) == []
    assert pool.num_free == 2
    assert np.array_equal(np.sort(pool.take(2).pages), [1, 2])
