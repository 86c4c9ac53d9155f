"""Rows that wait in front of a stop: how they go on, and what they cost of a turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from blockllm.engine.work import Known, Work


def decodes(known: Known) -> bool:
    """Whether the sequence only needs its next token, and none of its rows waits."""
    return known.num_new == 1 and not known.paused


def resume(known: Known) -> Iterator[Work]:
    """All rows of the sequence that wait, up to where the rows before them wait."""
    limit = known.num_stops
    for stop, start, rows in known.paused:
        yield Work(known.number, start, rows, stop, limit - 1)
        limit = stop


def rows_of(work: Iterable[Work], running: Mapping[int, Known]) -> int:
    """Rows of a turn that the work takes; those that pass a part of their stops count for it."""
    shares = (
        each.rows * (each.last_stop - each.first_stop + 1) / running[each.sequence].num_stops
        for each in work
    )
    return -int(-sum(shares) // 1)
