"""What a comparison shows: results.json, table.md, pictures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from blockllm.bench import plots
from blockllm.bench.compare import ArmRun, Comparison
from blockllm.bench.machine import machine_facts
from blockllm.bench.metrics import Spread
from blockllm.bench.spec import Load, Spec

_MILLI = 1000.0
_MIB = 1 << 20
_SHOWN = 3  # differing outputs of which the table tells


class Ratio(msgspec.Struct, frozen=True):
    """Output tokens/s of an arm over the reference's, pair by pair: median, least, largest."""

    median: float
    least: float
    largest: float


def write_verdict(spec: Spec, comparison: Comparison, out: Path) -> str:
    """Write everything into `out`; returns the Markdown table. Of a comparison that was stopped:
    the loads that have complete pairs."""
    out.mkdir(parents=True, exist_ok=True)
    begun = {run.load for run in comparison.runs}
    spec = msgspec.structs.replace(spec, load=tuple(x for x in spec.load if x.name in begun))
    content = {
        "name": spec.name,
        "machine": machine_facts(),
        "spec": msgspec.to_builtins(spec),
        "ratios": {
            load.name: {arm.name: ratio(spec, comparison.runs, load, arm.name) for arm in spec.arm}
            for load in spec.load
        },
        "disagreements": comparison.disagreements,
        "runs": comparison.runs,
    }
    (out / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(content)))
    text = markdown(spec, comparison)
    (out / "table.md").write_text(text, encoding="utf-8")
    _draw(spec, comparison.runs, out)
    return text


def ratio(spec: Spec, runs: Sequence[ArmRun], load: Load, arm: str) -> Ratio | None:
    """Against the reference arm; None where a run of either had failures or no tokens."""
    speeds = {}
    for run in _of(runs, load.name, arm) + _of(runs, load.name, spec.reference_arm):
        total = run.report.total
        if total.failed or not total.output_tokens:
            return None
        speeds[run.arm, run.pair] = total.output_tokens_per_second
    measured = sorted({pair for _, pair in speeds})
    pairs = [speeds[arm, pair] / speeds[spec.reference_arm, pair] for pair in measured]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def markdown(spec: Spec, comparison: Comparison) -> str:
    """A table per load: medians over the pairs, least and largest in brackets."""
    parts = [f"# {spec.name}\n\n{_how(spec, comparison)}"]
    if comparison.stopped is not None:
        parts.append(_ending(spec, comparison.runs, comparison.stopped))
    for load in spec.load:
        parts.append(f"## {load.name}\n\n{_work(load)}\n\n{_table(spec, comparison.runs, load)}")
    parts.append(_agreement(spec, comparison))
    return "\n\n".join(parts) + "\n"


def _how(spec: Spec, comparison: Comparison) -> str:
    facts = machine_facts()
    stolen = [100 * run.stolen for run in comparison.runs]
    again = f", {comparison.repeated} pairs over {spec.most_stolen:.0%} were measured again"
    return (
        f"{facts['processor']}, {facts['cores']} cores; {spec.pairs} interleaved pairs, arms "
        f"{'together, idle ones frozen' if spec.resident == 'together' else 'alone'}; "
        f"medians (least to largest); ratios against {spec.reference_arm}, pair by pair. The host "
        f"took {_range(stolen, 0)} % of the processors' time{again if comparison.repeated else ''}."
    )


def _ending(spec: Spec, runs: Sequence[ArmRun], error: BaseException) -> str:
    counts = (f"{load.name}: {len(_of(runs, load.name, spec.arm[0].name))}" for load in spec.load)
    cause = "interrupted" if isinstance(error, KeyboardInterrupt) else error
    return f"**Stopped** before all pairs were complete ({', '.join(counts)}): {cause}."


def _work(load: Load) -> str:
    loop = f"open loop, {load.rate:g} requests/s ({load.arrival})" if load.rate else "closed loop"
    at_once = f", {load.concurrency} at once" if load.concurrency else ""
    limit = f"; limit of the machine {load.limit:g} tokens/s" if load.limit else ""
    return (
        f"{load.requests} requests, {loop}{at_once}, prompts {load.prompt_length}, outputs "
        f"{load.output_length} tokens, {len(load.models)} models ({load.popularity}){limit}."
    )


def _table(spec: Spec, runs: Sequence[ArmRun], load: Load) -> str:
    heads = ["arm", "tokens/s", "ratio", "TTFT p50 ms", "TTFT p95 ms", "TPOT p50 ms", "ITL p99 ms"]
    heads += ["e2e p95 ms", "memory at rest MiB", "after MiB", "failed"]
    heads += ["of limit"] if load.limit else []
    heads += ["SLO kept"] if load.slo else []
    rows = [heads, ["---"] * len(heads)]
    rows += [_row(spec, runs, load, arm.name) for arm in spec.arm]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(spec: Spec, all_runs: Sequence[ArmRun], load: Load, arm: str) -> list[str]:
    runs = _of(all_runs, load.name, arm)
    totals = [run.report.total for run in runs]
    speeds = [total.output_tokens_per_second for total in totals]
    found = ratio(spec, all_runs, load, arm)
    cells = [
        arm,
        _range(speeds, 1),
        _range([found.median, found.least, found.largest], 2) if found else "-",
        _latency([total.ttft for total in totals], lambda s: s.p50),
        _latency([total.ttft for total in totals], lambda s: s.p95),
        _latency([total.tpot for total in totals], lambda s: s.p50),
        _latency([total.itl for total in totals], lambda s: s.p99),
        _latency([total.e2e for total in totals], lambda s: s.p95),
        _range([run.at_rest.pss / _MIB for run in runs], 0),
        _range([run.after.pss / _MIB for run in runs], 0),
        str(sum(sum(total.failed.values()) for total in totals)),
    ]
    if load.limit:
        cells.append(f"{statistics.median(speeds) / load.limit:.0%}")
    if load.slo:
        cells.append(_range([100 * (total.attainment or 0.0) for total in totals], 0) + " %")
    return cells


def _latency(spreads: Sequence[Spread | None], pick: Callable[[Spread], float]) -> str:
    return _range([pick(spread) * _MILLI for spread in spreads if spread], 1)


def _range(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    middle, low, high = statistics.median(values), min(values), max(values)
    if low == high:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _agreement(spec: Spec, comparison: Comparison) -> str:
    groups = dict.fromkeys(arm.exact_group for arm in spec.arm if arm.exact_group)
    if not groups:
        return "No arms were marked as exact, so outputs were not compared."
    if not comparison.disagreements:
        return f"Outputs are equal within {', '.join(groups)}."
    lines = [f"**{len(comparison.disagreements)} outputs differ:**", ""]
    for one in comparison.disagreements[:_SHOWN]:
        shown = " / ".join(repr(text[:80]) for text in one.outputs)
        place = f"{one.load}, pair {one.pair + 1}, request {one.index}"
        lines.append(f"- {place}: {one.arms[0]} / {one.arms[1]}: {shown}")
    return "\n".join(lines)


def _of(runs: Sequence[ArmRun], load: str, arm: str) -> list[ArmRun]:
    return [run for run in runs if run.load == load and run.arm == arm]


def _draw(spec: Spec, runs: Sequence[ArmRun], out: Path) -> None:
    for number, load in enumerate(spec.load, 1):
        outcomes = {
            arm.name: [o for run in _of(runs, load.name, arm.name) for o in run.outcomes]
            for arm in spec.arm
        }
        plots.latency_cdfs(out / f"latency-{number}.png", outcomes)
    for file, title, unit, pick in _BARS:
        groups = {
            load.name: {
                arm.name: [pick(r) for r in _of(runs, load.name, arm.name)] for arm in spec.arm
            }
            for load in spec.load
        }
        plots.bars(out / file, f"{title}: median, least and greatest of the runs", unit, groups)


def _speed(run: ArmRun) -> float:
    return run.report.total.output_tokens_per_second


_BARS: tuple[tuple[str, str, str, Callable[[ArmRun], float]], ...] = (
    ("throughput.png", "output tokens a second", "tokens/s", _speed),
    ("memory.png", "memory after a run", "MiB (PSS)", lambda run: run.after.pss / _MIB),
)
