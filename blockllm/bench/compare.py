"""Runs the arms of a comparison in turn on the same planned requests: A B A B …"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import msgspec
import uvloop

from blockllm.bench.arms import RunningArm
from blockllm.bench.client import Outcome
from blockllm.bench.machine import Memory
from blockllm.bench.metrics import Report, report
from blockllm.bench.runner import Run, Sender
from blockllm.bench.spec import AnyArm, Load, Spec
from blockllm.bench.workload import plan


class ArmRun(msgspec.Struct):
    """One arm's replay of one pair's plan. `at_rest`: memory after starting and before any
    request, bytes; `after`: when the last answer has ended (looking while a run goes on would
    disturb it: reading a large process' page tables takes milliseconds)."""

    load: str
    pair: int
    arm: str
    report: Report
    at_rest: Memory
    after: Memory
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
    """Everything that was measured."""

    runs: list[ArmRun]
    disagreements: list[Disagreement]


Say = Callable[[str], None]


def run_comparison(spec: Spec, out: Path, say: Say) -> Comparison:
    """Measure; logs of the arms go to `out`/logs. Every process started is ended, whatever
    happens. Raises BlockllmError when an arm does not start or dies."""
    measure = _run_together if spec.resident == "together" else _run_alone
    runs = measure(spec, out / "logs", say)
    return Comparison(runs, disagreements(spec, runs))


def _run_together(spec: Spec, logs: Path, say: Say) -> list[ArmRun]:
    runs = []
    with ExitStack() as stack:
        arms = []
        for arm in spec.arm:
            running = _start(spec, arm, logs, say)
            stack.callback(running.stop)
            arms.append(running)
            running.freeze()
        at_rest = [running.memory() for running in arms]
        for load in spec.load:
            for pair in range(spec.pairs):
                for running, memory in zip(arms, at_rest, strict=True):
                    running.thaw()
                    runs.append(_measure(spec, load, pair, running, memory, say))
                    running.freeze()
    return runs


def _run_alone(spec: Spec, logs: Path, say: Say) -> list[ArmRun]:
    """An arm runs all loads each time it is started: starting is what takes long."""
    runs = []
    for pair in range(spec.pairs):
        for arm in spec.arm:
            running = _start(spec, arm, logs, say)
            try:
                at_rest = running.memory()
                runs += [_measure(spec, load, pair, running, at_rest, say) for load in spec.load]
            finally:
                running.stop()
    return runs


def _start(spec: Spec, arm: AnyArm, logs: Path, say: Say) -> RunningArm:
    say(f"starting {arm.name}")
    return RunningArm(arm, spec.models, logs, spec.ready_timeout)


def _measure(
    spec: Spec, load: Load, pair: int, arm: RunningArm, at_rest: Memory, say: Say
) -> ArmRun:
    """Each pair has a plan of its own, so that no arm finds an earlier pair's prompts cached."""
    workload = load.workload(spec.seed + pair)
    planned = plan(workload)
    sender = Sender(arm.targets, timeout=spec.timeout)

    async def send() -> Run:
        await sender.warm_up(workload, load.warm_up)
        return await sender.replay(planned, workload.concurrency)

    run = uvloop.run(send())
    after = arm.memory()
    arm.check_alive()
    found = report(run, load.slo)
    total = found.total
    failed = f", FAILED {total.failed}" if total.failed else ""
    say(
        f"{load.name}, pair {pair + 1} of {spec.pairs}, {arm.arm.name}: "
        f"{total.output_tokens_per_second:.1f} tokens/s, "
        f"TTFT {total.ttft.p50 if total.ttft else 0:.3f} s{failed}"
    )
    return ArmRun(load.name, pair, arm.arm.name, found, at_rest, after, run.outcomes)


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
