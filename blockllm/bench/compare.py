"""Runs the arms of a comparison in turn on the same planned requests: A B A B …"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from blockllm.bench.arms import RunningArm
from blockllm.bench.client import Outcome
from blockllm.bench.machine import Memory, processor_ticks, stolen_share
from blockllm.bench.metrics import Report, report
from blockllm.bench.runner import Run, Sender
from blockllm.bench.spec import AnyArm, Load, Spec
from blockllm.bench.workload import plan
from blockllm.errors import BlockllmError

_REPEATS = 3  # pairs that may be measured again, for each that is wanted


class ArmRun(msgspec.Struct):
    """One arm's replay of one pair's plan. `at_rest`: memory after starting and before any
    request, bytes; `after`: when the last answer has ended (looking while a run goes on would
    disturb it: reading a large process' page tables takes milliseconds). `stolen`: share of the
    processor time that the host of a virtual machine gave to others meanwhile."""

    load: str
    pair: int
    arm: str
    report: Report
    at_rest: Memory
    after: Memory
    stolen: float
    outcomes: list[Outcome]


class Disagreement(msgspec.Struct, frozen=True):
    """A request that two arms of one exact group answered differently, or that one of them did not
    answer, so that nothing is proven about it."""

    load: str
    pair: int
    index: int
    arms: tuple[str, str]
    outputs: tuple[str, str]


class Comparison(NamedTuple):
    """Everything that was measured; `repeated`: pairs that were measured again; `stopped`: what
    ended it before all pairs were complete."""

    runs: list[ArmRun]
    disagreements: list[Disagreement]
    repeated: int
    stopped: BlockllmError | KeyboardInterrupt | None


Say = Callable[[str], None]


def run_comparison(spec: Spec, out: Path, say: Say) -> Comparison:
    """Measure; logs of the arms go to `out`/logs. Every process started is ended, whatever
    happens. An arm that dies and Ctrl-C leave what was complete by then; raises BlockllmError or
    KeyboardInterrupt if nothing was."""
    measure = _run_together if spec.resident == "together" else _run_alone
    pairs = _Pairs(spec, say)
    stopped: BlockllmError | KeyboardInterrupt | None = None
    try:
        measure(spec, pairs, out / "logs", say)
    except (BlockllmError, KeyboardInterrupt) as error:
        if not pairs.runs:
            raise
        stopped = error
    return Comparison(pairs.runs, disagreements(spec, pairs.runs), pairs.repeated, stopped)


class _Place(NamedTuple):
    """A pair, and which plan it replays: one that is measured again gets another."""

    pair: int
    plan: int


class _Pairs:
    """Takes pairs until there are as many as are wanted. One of which the host has taken too
    much is given up and measured again, as long as repeats last."""

    def __init__(self, spec: Spec, say: Say) -> None:
        self._spec, self._say = spec, say
        self.runs: list[ArmRun] = []  # of complete pairs
        self.repeated = 0

    def take(self, measure: Callable[[_Place], Generator[ArmRun]]) -> None:
        """All runs of all pairs; `measure` makes the runs of one."""
        spare = _REPEATS * self._spec.pairs
        for pair in range(self._spec.pairs):
            while True:
                limit = self._spec.most_stolen if spare else 1.0
                with closing(measure(_Place(pair, pair + self.repeated))) as runs:
                    kept = self._undisturbed(runs, limit)
                if kept is not None:
                    break
                self.repeated += 1
                spare -= 1
            self.runs += kept

    def _undisturbed(self, runs: Iterator[ArmRun], limit: float) -> list[ArmRun] | None:
        taken = []
        for run in runs:
            taken.append(run)
            if run.stolen > limit:
                self._say(f"again: the host took {run.stolen:.0%} of the processors' time")
                return None
        return taken


def _run_together(spec: Spec, pairs: _Pairs, logs: Path, say: Say) -> None:
    with ExitStack() as stack:
        arms = []
        for arm in spec.arm:
            running = _start(spec, arm, logs, say)
            stack.callback(running.stop)
            arms.append(running)
            running.freeze()
        at_rest = [running.memory() for running in arms]

        def measure(load: Load, place: _Place) -> Generator[ArmRun]:
            for running, memory in zip(arms, at_rest, strict=True):
                running.thaw()
                run = _measure(spec, load, place, running, memory, say)
                running.freeze()
                yield run

        for load in spec.load:
            pairs.take(functools.partial(measure, load))


def _run_alone(spec: Spec, pairs: _Pairs, logs: Path, say: Say) -> None:
    """An arm runs all loads each time it is started: starting is what takes long."""

    def measure(place: _Place) -> Generator[ArmRun]:
        for arm in spec.arm:
            running = _start(spec, arm, logs, say)
            try:
                at_rest = running.memory()
                for load in spec.load:
                    yield _measure(spec, load, place, running, at_rest, say)
            finally:
                running.stop()

    pairs.take(measure)


def _start(spec: Spec, arm: AnyArm, logs: Path, say: Say) -> RunningArm:
    say(f"starting {arm.name}")
    return RunningArm(arm, spec.models, logs, spec.ready_timeout)


def _measure(
    spec: Spec, load: Load, place: _Place, arm: RunningArm, at_rest: Memory, say: Say
) -> ArmRun:
    """Each pair and load has a plan of its own, so that no arm finds earlier prompts cached."""
    workload = load.workload((spec.seed + place.plan) * len(spec.load) + spec.load.index(load))
    planned = plan(workload)
    sender = Sender(arm.targets, timeout=spec.timeout)

    async def send() -> Run:
        await sender.warm_up(workload, load.warm_up)
        return await sender.replay(planned, workload.concurrency)

    before = processor_ticks()
    run = uvloop.run(send())
    stolen = stolen_share(before, processor_ticks())
    after = arm.memory()
    arm.check_alive()
    found = report(run, load.slo)
    total = found.total
    failed = f", FAILED {total.failed}" if total.failed else ""
    say(
        f"{load.name}, pair {place.pair + 1} of {spec.pairs}, {arm.arm.name}: "
        f"{total.output_tokens_per_second:.1f} tokens/s, "
        f"TTFT {total.ttft.p50 if total.ttft else 0:.3f} s{failed}"
    )
    name = arm.arm.name
    return ArmRun(load.name, place.pair, name, found, at_rest, after, stolen, run.outcomes)


def disagreements(spec: Spec, runs: Sequence[ArmRun]) -> list[Disagreement]:
    """Every request whose outputs differ from those of the first arm of its exact group."""
    by_key = {(run.load, run.pair, run.arm): run for run in runs}
    found: list[Disagreement] = []
    for group in dict.fromkeys(arm.exact_group for arm in spec.arm if arm.exact_group):
        first, *others = [arm.name for arm in spec.arm if arm.exact_group == group]
        for load, pair, arm in by_key:
            if arm in others:
                found += _differing(by_key[load, pair, first], by_key[load, pair, arm])
    return found


def _differing(first: ArmRun, second: ArmRun) -> list[Disagreement]:
    found = []
    for one, other in zip(first.outcomes, second.outcomes, strict=True):
        by_ids = bool(one.token_ids and other.token_ids)
        outputs = (_output(one, by_ids), _output(other, by_ids))
        if one.error or other.error or outputs[0] != outputs[1]:
            arms = (first.arm, second.arm)
            found.append(Disagreement(first.load, first.pair, one.index, arms, outputs))
    return found


def _output(outcome: Outcome, by_ids: bool) -> str:
    if outcome.error:
        return f"({outcome.error}: {outcome.detail})"
    return str(outcome.token_ids) if by_ids else outcome.text
