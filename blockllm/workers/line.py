"""Calls that wait for a worker: tenants in turn, and each has its share of the places."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from blockllm.errors import Overloaded, TooManyRequests
from blockllm.shares import has_room
from blockllm.workers.process import Worker

PLACE_BYTES = 32 << 10  # of a question: a longer one takes more places
LONG_PLACES = 2  # a question of more is long


class Wish(NamedTuple):
    """What a call needs a worker for, and where the worker is handed over."""

    found: asyncio.Future[Worker]
    contents: Mapping[str, str]
    tenant: str
    places: int

    @property
    def is_long(self) -> bool:
        """Whether it may keep its worker for long although no content is at fault."""
        return self.places > LONG_PLACES


def places_of(question: bytes) -> int:
    """How many places a question takes in line."""
    return 1 + len(question) // PLACE_BYTES


class Line:
    """Wishes by tenant; the tenant that was served longest ago stands first."""

    def __init__(self, places: int) -> None:
        self._most = places
        self._lines: dict[str, deque[Wish]] = {}
        self._taken = Counter[str]()  # places by tenant

    def add(self, wish: Wish) -> None:
        """At the end of its tenant's line. Raises Overloaded, and TooManyRequests for a tenant that
        has its share."""
        taken, own = self._taken.total(), self._taken[wish.tenant]
        if taken and taken + wish.places > self._most:
            raise Overloaded("too many texts wait to be read; try again later")
        if wish.tenant and not has_room(own, taken, self._most):
            raise TooManyRequests("your share of the texts waits to be read; try again later")
        self._lines.setdefault(wish.tenant, deque()).append(wish)
        self._taken[wish.tenant] += wish.places

    def remove(self, wish: Wish) -> None:
        """It waits no more."""
        line = self._lines[wish.tenant]
        line.remove(wish)
        self._taken[wish.tenant] -= wish.places
        if not line:
            del self._lines[wish.tenant], self._taken[wish.tenant]

    def next(self, may_hold: Callable[[Wish], bool]) -> Wish | None:
        """Take the first wish that may have a worker now out of the line; its tenant's next turn
        comes after those of all others."""
        for tenant, line in self._lines.items():
            for wish in line:
                if may_hold(wish):
                    self.remove(wish)
                    if tenant in self._lines:
                        self._lines[tenant] = self._lines.pop(tenant)
                    return wish
        return None

    def clear(self, error: Exception) -> None:
        """All of them fail."""
        for line in self._lines.values():
            for wish in line:
                wish.found.set_exception(error)
        self._lines.clear()
        self._taken.clear()
