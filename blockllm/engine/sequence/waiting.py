"""Requests that wait for admission, in one line for each tenant, and what tenants were served."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from blockllm.config import TenantSettings
from blockllm.engine.sequence.sequence import Sequence
from blockllm.engine.sequence.tenants import TenantState


class WaitingLines:
    """Lines of tenants; the tenant that was admitted longest ago stands first."""

    def __init__(self, settings: Mapping[str, TenantSettings]) -> None:
        """`settings`: of tenants that have other weights and quotas than the default."""
        self.tenants: dict[str, TenantState] = {}
        self._settings = settings
        self._lines: dict[str, deque[Sequence]] = {}
        self._count = 0
        self._last = TenantState(TenantSettings())  # the tenant whose line ended last

    def __len__(self) -> int:
        return self._count

    @property
    def lines(self) -> Mapping[str, deque[Sequence]]:
        """By tenant, in turn; each in order of arrival, none empty."""
        return self._lines

    def first(self) -> Sequence | None:
        """The first of the first line."""
        return next((line[0] for line in self._lines.values()), None)

    def tenant(self, name: str) -> TenantState:
        """What a tenant was served, and its quotas; begins where it is not known yet."""
        state = self.tenants.get(name)
        if state is None:
            state = TenantState(self._settings.get(name) or TenantSettings())
            self.tenants[name] = state
        return state

    def num_of(self, tenant: str) -> int:
        """How many of a tenant wait."""
        return len(self._lines.get(tenant, ()))

    def add(self, sequence: Sequence) -> None:
        """At the end of its tenant's line. A tenant without a line gets no credit for that time:
        its counter becomes the least of tenants that have one, or had the last, if it is less."""
        state = self.tenant(sequence.tenant)
        if sequence.tenant not in self._lines:
            counters = (self.tenants[name].counter for name in self._lines)
            state.lift(min(counters, default=self._last.counter))
        self._lines.setdefault(sequence.tenant, deque()).append(sequence)
        self._count += 1

    def put_back(self, sequence: Sequence) -> None:
        """At the head of its tenant's line."""
        self._lines.setdefault(sequence.tenant, deque()).appendleft(sequence)
        self._count += 1

    def remove(self, sequence: Sequence) -> None:
        """It waits no more."""
        line = self._lines[sequence.tenant]
        line.remove(sequence)
        self._count -= 1
        if not line:
            del self._lines[sequence.tenant]
            self._last = self.tenants[sequence.tenant]

    def admit(self, sequence: Sequence) -> None:
        """It waits no more, and of tenants with equal counters its own comes last."""
        self.remove(sequence)
        line = self._lines.pop(sequence.tenant, None)
        if line is not None:
            self._lines[sequence.tenant] = line

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line
