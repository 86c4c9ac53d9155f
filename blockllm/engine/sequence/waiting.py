"""Requests that wait for admission, in one line for each tenant."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

from blockllm.engine.sequence.sequence import Sequence


class WaitingLines:
    """Lines of tenants; the tenant that was admitted longest ago stands first."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Sequence]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def lines(self) -> Mapping[str, deque[Sequence]]:
        """By tenant, in turn; each in order of arrival, none empty."""
        return self._lines

    def first(self) -> Sequence | None:
        """The first of the first line."""
        return next((line[0] for line in self._lines.values()), None)

    def num_of(self, tenant: str) -> int:
        """How many of a tenant wait."""
        return len(self._lines.get(tenant, ()))

    def add(self, sequence: Sequence) -> None:
        """At the end of its tenant's line."""
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

    def admit(self, sequence: Sequence) -> None:
        """It waits no more, and its tenant's turn comes after those of all others."""
        self.remove(sequence)
        line = self._lines.pop(sequence.tenant, None)
        if line is not None:
            self._lines[sequence.tenant] = line

    def __iter__(self) -> Iterator[Sequence]:
        for line in self._lines.values():
            yield from line
