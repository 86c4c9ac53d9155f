"""Numbers of one run, from its outcomes. Pure; docs/bench.md says how to read each.

Times are seconds from sending a request:
- TTFT: until the first chunk that carries tokens.
- TPOT: (last token chunk - first token chunk) / (output tokens - 1); only with two tokens or more.
- ITL: gaps between neighbouring chunks that carry tokens, of all requests together. A chunk may
  carry several tokens, so ITL shows stalls and TPOT shows speed.
- end-to-end: until the last byte.
Requests that failed count as failed and nowhere else: not in latencies, tokens or goodput.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import msgspec
import numpy as np

from blockllm.bench.client import Outcome
from blockllm.bench.runner import Run
from blockllm.errors import ConfigError


class Spread(msgspec.Struct, frozen=True):
    """Mean and percentiles (linear between neighbours), seconds; `count` values."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class Slo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits in seconds that one request must keep; None: no limit."""

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None


class Summary(msgspec.Struct, frozen=True):
    """One run, or the part of it that belongs to one model or tenant.

    `short`: answers with fewer tokens than asked for. `attainment`: share of all requests, failed
    ones included, that kept the SLO; `goodput`: those, per second. `slowdown`: end-to-end against
    the same request alone.
    """

    requests: int
    failed: dict[str, int]
    short: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_second: float
    requests_per_second: float
    ttft: Spread | None
    tpot: Spread | None
    itl: Spread | None
    e2e: Spread | None
    attainment: float | None = None
    goodput: float | None = None
    slowdown: Spread | None = None


class Report(msgspec.Struct, frozen=True):
    """A run as a whole and in parts. `fairness`: Jain's index over tenants (over models when
    there is one tenant) of the mean progress of their requests: solo time / time where solo was
    measured, else output tokens per second of end-to-end time."""

    duration: float
    total: Summary
    models: dict[str, Summary]
    tenants: dict[str, Summary]
    fairness: float | None
    client_cpu_ms_per_token: float
    max_lag: float


def ttft(outcome: Outcome) -> float | None:
    """Seconds to the first chunk with tokens."""
    return outcome.arrivals[0] if outcome.arrivals else None


def tpot(outcome: Outcome) -> float | None:
    """Seconds per output token after the first."""
    if outcome.tokens < 2 or not outcome.arrivals:
        return None
    return (outcome.arrivals[-1] - outcome.arrivals[0]) / (outcome.tokens - 1)


def gaps(outcome: Outcome) -> list[float]:
    """Seconds between neighbouring chunks with tokens."""
    return [b - a for a, b in zip(outcome.arrivals, outcome.arrivals[1:], strict=False)]


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of the values there are; None when there is none."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    p50, p95, p99 = (float(value) for value in np.percentile(known, (50, 95, 99)))
    return Spread(len(known), float(known.mean()), p50, p95, p99, float(known.max()))


def parse_slo(text: str) -> Slo:
    """`ttft=0.5,tpot=0.1` (also `e2e=…`), seconds. Raises ConfigError."""
    pairs = dict(part.partition("=")[::2] for part in text.split(",") if part.strip())
    try:
        return msgspec.convert({k.strip(): v for k, v in pairs.items()}, Slo, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"slo {text!r}: expected e.g. ttft=0.5,tpot=0.1 ({error})") from error


def keeps(outcome: Outcome, slo: Slo) -> bool:
    """Whether the request succeeded within every limit."""
    seen = ((slo.ttft, ttft(outcome)), (slo.tpot, tpot(outcome)), (slo.e2e, outcome.end))
    return not outcome.error and all(
        limit is None or value is None or value <= limit for limit, value in seen
    )


def jain(values: Sequence[float]) -> float:
    """Jain's index (Σx)² / (n Σx²): 1 when all are equal, 1/n when one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


class SoloTimes:
    """What a request takes alone, from a solo run: the model's median TTFT, scaled by the prompt's
    length, plus its median TPOT for every further token."""

    def __init__(self, run: Run) -> None:
        """Raises ConfigError when a solo request failed."""
        by_model: dict[str, list[Outcome]] = defaultdict(list)
        for outcome in run.outcomes:
            if outcome.error:
                raise ConfigError(f"solo: {outcome.model}: {outcome.error}: {outcome.detail}")
            by_model[outcome.model].append(outcome)
        self._per_prompt_token = {
            model: float(np.median([(ttft(o) or o.end) / o.prompt_tokens for o in outcomes]))
            for model, outcomes in by_model.items()
        }
        self._per_token = {
            model: float(np.median([tpot(o) or 0.0 for o in outcomes]))
            for model, outcomes in by_model.items()
        }

    def of(self, outcome: Outcome) -> float:
        """Seconds the request would take alone."""
        prompt = self._per_prompt_token[outcome.model] * outcome.prompt_tokens
        return prompt + self._per_token[outcome.model] * (outcome.tokens - 1)


def summarise(
    outcomes: Sequence[Outcome], duration: float, slo: Slo | None, solo: SoloTimes | None
) -> Summary:
    """Numbers of some of a run's outcomes; `duration` is the whole run's, seconds."""
    good = [outcome for outcome in outcomes if not outcome.error]
    tokens = sum(outcome.tokens for outcome in good)
    kept = sum(keeps(outcome, slo) for outcome in outcomes) if slo else None
    return Summary(
        requests=len(outcomes),
        failed=dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        short=sum(outcome.tokens < outcome.asked for outcome in good),
        prompt_tokens=sum(outcome.prompt_tokens for outcome in good),
        output_tokens=tokens,
        output_tokens_per_second=tokens / duration,
        requests_per_second=len(good) / duration,
        ttft=spread(map(ttft, good)),
        tpot=spread(map(tpot, good)),
        itl=spread(gap for outcome in good for gap in gaps(outcome)),
        e2e=spread(outcome.end for outcome in good),
        attainment=None if kept is None else kept / len(outcomes),
        goodput=None if kept is None else kept / duration,
        slowdown=spread(outcome.end / solo.of(outcome) for outcome in good) if solo else None,
    )


def report(run: Run, slo: Slo | None = None, solo: SoloTimes | None = None) -> Report:
    """Everything about one run."""
    models = _split(run.outcomes, lambda outcome: outcome.model)
    tenants = _split(run.outcomes, lambda outcome: outcome.tenant)
    parts = tenants if len(tenants) > 1 else models
    tokens = sum(outcome.tokens for outcome in run.outcomes)

    def part(outcomes: Sequence[Outcome]) -> Summary:
        return summarise(outcomes, run.duration, slo, solo)

    return Report(
        duration=run.duration,
        total=part(run.outcomes),
        models={name: part(outcomes) for name, outcomes in models.items()},
        tenants={name: part(outcomes) for name, outcomes in tenants.items()},
        fairness=_fairness(parts, solo),
        client_cpu_ms_per_token=1000 * run.client_cpu / max(1, tokens),
        max_lag=max(outcome.lag for outcome in run.outcomes),
    )


def _split(outcomes: Sequence[Outcome], key: Callable[[Outcome], str]) -> dict[str, list[Outcome]]:
    parts: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        parts[key(outcome)].append(outcome)
    return dict(sorted(parts.items()))


def _fairness(parts: dict[str, list[Outcome]], solo: SoloTimes | None) -> float | None:
    if len(parts) < 2:
        return None
    progress = []
    for outcomes in parts.values():
        good = [o for o in outcomes if not o.error]
        each = [(solo.of(o) if solo else o.tokens) / o.end for o in good]
        progress.append(sum(each) / len(each) if each else 0.0)
    return jain(progress)
