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


class WaitingCall(NamedTuple):
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
    """How many places of the queue a question takes."""
    return 1 + len(question) // PLACE_BYTES


class CallQueue:
    """Calls by tenant; the tenant that was served longest ago stands first."""

    def __init__(self, places: int) -> None:
        self._most = places
        self._queues: dict[str, deque[WaitingCall]] = {}
        self._taken = Counter[str]()  # places by tenant

    def add(self, waiting: WaitingCall) -> None:
        """At the end of its tenant's queue. Raises Overloaded, and TooManyRequests for a tenant
        that has its share."""
        taken, own = self._taken.total(), self._taken[waiting.tenant]
        if taken and taken + waiting.places > self._most:
            raise Overloaded("too many texts wait to be read; try again later")
        if waiting.tenant and not has_room(own, taken, self._most):
            raise TooManyRequests("your share of the texts waits to be read; try again later")
        self._queues.setdefault(waiting.tenant, deque()).append(waiting)
        self._taken[waiting.tenant] += waiting.places

    def remove(self, waiting: WaitingCall) -> None:
        """It waits no more."""
        queue = self._queues[waiting.tenant]
        queue.remove(waiting)
        self._taken[waiting.tenant] -= waiting.places
        if not queue:
            del self._queues[waiting.tenant], self._taken[waiting.tenant]

    def next(self, may_hold: Callable[[WaitingCall], bool]) -> WaitingCall | None:
        """Take out the first call that may have a worker now; its tenant's next turn
        comes after those of all others."""
        for tenant, queue in self._queues.items():
            for waiting in queue:
                if may_hold(waiting):
                    self.remove(waiting)
                    if tenant in self._queues:
                        self._queues[tenant] = self._queues.pop(tenant)
                    return waiting
        return None

    def clear(self, error: Exception) -> None:
        """All of them fail."""
        for queue in self._queues.values():
            for waiting in queue:
                waiting.found.set_exception(error)
        self._queues.clear()
        self._taken.clear()
