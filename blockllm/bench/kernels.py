"""Kernels against their plain twins and against the limits of the machine.

Kernel and twin take turns, so that a neighbour on the machine disturbs both. Both walk over
several copies of their inputs, together at least twice as large as the last-level cache where
memory allows: weights that lie in cache after the last call would flatter the one that runs second.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from blockllm.bench.roofline import Limits, timed

Tensors = tuple[torch.Tensor, ...]

ROUNDS = 7
_MEMORY = 1 << 30  # bytes for all copies of one case's inputs
_COPIES = 64
_SECONDS = 0.005  # of one timing, so that the clock's own cost does not matter


class Call(NamedTuple):
    """One set of inputs, and the two functions of it that must agree. Both may overwrite what
    they are given; equal inputs give equal outputs."""

    kernel: Callable[[], Any]
    twin: Callable[[], Any]


class Case(NamedTuple):
    """One kernel at one size."""

    name: str
    size: str  # for people: what distinguishes it from its neighbours of the same name
    make: Callable[[int], Call]  # from a seed; different seeds share no memory
    bytes: int  # that must come from memory or go there
    flops: int
    tolerance: float = 1e-3  # largest difference between kernel and twin that is rounding


class Times(msgspec.Struct, frozen=True):
    """Microseconds of one call."""

    median: float
    low: float
    high: float


class Result(msgspec.Struct, frozen=True):
    """What was measured of one case."""

    name: str
    size: str
    kernel: Times
    twin: Times
    difference: float  # largest between kernel and twin
    agrees: bool  # the difference is within the case's tolerance
    copies: int  # of the inputs
    beyond_cache: bool  # the copies together exceed twice the last-level cache
    gigabytes_per_second: float
    gigaflops: float
    limit: float  # microseconds
    fraction: float  # of the limit: 1 is as fast as the machine

    @property
    def speedup(self) -> float:
        """Of the kernel over its twin."""
        return self.twin.median / self.kernel.median


def measure(case: Case, limits: Limits, device: torch.device, rounds: int = ROUNDS) -> Result:
    """Check that kernel and twin agree, then time them in turns."""
    wanted = -(-2 * limits.cache_bytes // case.bytes) + 1
    copies = max(2, min(wanted, _COPIES, _MEMORY // case.bytes))
    check = [case.make(0) for _ in range(2)]
    difference = _difference(check[0].kernel(), check[1].twin())
    calls = [case.make(seed) for seed in range(copies)]
    kernels, twins = [c.kernel for c in calls], [c.twin for c in calls]
    repeats = [_repeats(runs, device) for runs in (kernels, twins)]
    seen: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for arm, runs in enumerate((kernels, twins)):
            seen[arm].append(_round(runs, repeats[arm], device))
    kernel, twin = _times(seen[0]), _times(seen[1])
    seconds, limit = kernel.median / 1e6, limits.seconds(case.bytes, case.flops)
    return Result(
        name=case.name,
        size=case.size,
        kernel=kernel,
        twin=twin,
        difference=difference,
        agrees=difference <= case.tolerance,
        copies=copies,
        beyond_cache=copies * case.bytes > 2 * limits.cache_bytes,
        gigabytes_per_second=case.bytes / seconds / 1e9,
        gigaflops=case.flops / seconds / 1e9,
        limit=limit * 1e6,
        fraction=limit / seconds,
    )


def _repeats(runs: Sequence[Callable[[], Any]], device: torch.device) -> int:
    """Passes over all copies in one timing; the first pass warms up."""
    _round(runs, 1, device)
    one = _round(runs, 1, device) * len(runs)
    return max(1, int(_SECONDS / max(one, 1e-9)))


def _round(runs: Sequence[Callable[[], Any]], repeats: int, device: torch.device) -> float:
    """Seconds of one call, averaged over all copies."""

    def walk() -> None:
        for _ in range(repeats):
            for run in runs:
                run()

    return timed(walk, device) / (repeats * len(runs))


def _times(seconds: list[float]) -> Times:
    return Times(statistics.median(seconds) * 1e6, min(seconds) * 1e6, max(seconds) * 1e6)


def _difference(left: Any, right: Any) -> float:
    """Largest absolute difference; infinite where only one is not a number."""
    if isinstance(left, torch.Tensor):
        unequal = (left != right) & ~(left.isnan() & right.isnan())
        gap = torch.where(unequal, (left.double() - right.double()).abs(), 0.0)
        return float(gap.nan_to_num(nan=float("inf")).max())
    return max(_difference(a, b) for a, b in zip(left, right, strict=True))


def select(cases: Iterable[Case], names: Sequence[str]) -> list[Case]:
    """The cases whose name begins with one of `names`; all if there are none."""
    return [c for c in cases if not names or c.name.startswith(tuple(names))]


def plot(results: Sequence[Result], limits: Limits, path: Path) -> None:
    """A bar per case: its fraction of the limit. Needs matplotlib (extra `bench`)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.22 * len(results)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{r.name} {r.size}" for r in results]
    axes.barh(labels, [r.fraction for r in results], label="kernel")
    axes.barh(labels, [r.limit / r.twin.median for r in results], height=0.3, label="plain twin")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"fraction of the limit ({limits.bytes_per_second / 1e9:.1f} GB/s, "
        f"{limits.flops_per_second / 1e9:.0f} GFLOP/s {limits.dtype}, {limits.device})"
    )
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
