"""Which sequences compute how many rows in the next turn. Pure: state in, plan out (law 7).

Policy: sequences that only need their next token go first, then prompts in order of arrival,
all under one row budget. When pages run out, the youngest sequence is preempted. Waiting
requests are admitted in order of arrival while rows, slots and pages last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, Protocol, TypeVar


class Runnable(Protocol):
    """What the policy sees of an admitted sequence."""

    @property
    def remaining(self) -> int: ...


S = TypeVar("S", bound=Runnable)


class RunningPlan(NamedTuple, Generic[S]):
    """Rows for each running sequence, and the sequences to preempt to make room for them."""

    grants: list[tuple[S, int]]
    preempted: list[S]


def plan_running(
    running: Sequence[S],
    max_rows: int,
    available: int,
    pages_for: Callable[[S, int], int],
    pages_of: Callable[[S], int],
) -> RunningPlan[S]:
    """Plan for sequences of one KV pool, oldest first.

    `pages_for(sequence, rows)`: pages it lacks to compute that many rows more;
    `pages_of(sequence)`: pages that its preemption makes available.
    """
    alive = list(running)
    rows = _split_rows(alive, max_rows)
    grants: list[tuple[S, int]] = []
    preempted: list[S] = []
    position = 0
    while position < len(alive):
        sequence = alive[position]
        granted = rows[id(sequence)]
        need = pages_for(sequence, granted) if granted else 0
        if need <= available:
            available -= need
            if granted:
                grants.append((sequence, granted))
            position += 1
            continue
        victim = alive.pop()  # the youngest; possibly the sequence itself
        available += pages_of(victim)
        preempted.append(victim)
    return RunningPlan(grants, preempted)


def _split_rows(running: Iterable[Runnable], max_rows: int) -> dict[int, int]:
    """Single rows first, then chunks of prompts in order, until the budget is used."""
    ordered = sorted(running, key=lambda s: s.remaining != 1)  # stable: age is kept
    rows = {}
    for sequence in ordered:
        granted = min(sequence.remaining, max_rows)
        rows[id(sequence)] = granted
        max_rows -= granted
    return rows


def model_order(waiting: Iterable[str], last_turn: Mapping[str, int]) -> list[str]:
    """Models in the order in which they may take the next turn, when a turn belongs to one model.

    `waiting` holds the model of every known request, oldest first; `last_turn` the number of the
    last turn each model was given. Longest ago goes first, so no model waits for more turns than
    there are others with work; among models that never had one, the oldest request decides.
    """
    return sorted(dict.fromkeys(waiting), key=lambda model: last_turn.get(model, -1))


class Candidate(NamedTuple):
    """What admission must know about a waiting request."""

    remaining: int  # rows left after prefix hits
    pages_now: int  # pages for all its tokens and the next one, cached ones it adopts included
    blocked: bool  # another sequence is computing its next page right now: wait and share it


def admit_rows(
    candidate: Candidate, max_rows: int, available: int, reserve: int, idle: bool
) -> int:
    """Rows to start the candidate with, 0 to let it wait. `reserve` pages stay free for the
    growth of running sequences; an idle pool admits whatever fits at all."""
    if candidate.blocked or max_rows <= 0:
        return 0
    if candidate.pages_now > available - (0 if idle else reserve):
        return 0
    return min(candidate.remaining, max_rows)
