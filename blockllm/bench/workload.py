"""A workload is a pure function of its description: Workload → list of planned requests.

Every part (lengths, arrivals, models, tenants, tokens) draws from a generator of its own, so
changing one leaves the others as they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import msgspec
import numpy as np

from blockllm.bench.draws import (
    Arrival,
    check_popularity,
    draw_arrivals,
    draw_lengths,
    draw_models,
)
from blockllm.errors import ConfigError

_WORDS = (
    "time",
    "year",
    "people",
    "way",
    "day",
    "thing",
    "life",
    "child",
    "world",
    "school",
    "state",
)


class Workload(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What to ask; docs/bench.md describes each field. `rate` 0 is a closed loop."""

    models: tuple[str, ...] = ()
    requests: int = 64
    concurrency: int = 0
    rate: float = 0.0
    arrival: Arrival = "poisson"
    burstiness: float = 4.0
    prompt_length: str = "128"
    output_length: str = "64"
    popularity: str = "uniform"
    tenants: tuple[str, ...] = ()
    shared_prefix: str = ""
    token_range: str = "100:1000"
    text_prompts: bool = False
    seed: int = 0


class Planned(msgspec.Struct, frozen=True):
    """One request to send `at` seconds after the start (0 in a closed loop)."""

    index: int
    at: float
    model: str
    tenant: str
    prompt: str | list[int]
    prompt_tokens: int  # of a text prompt: words, an estimate
    output_tokens: int


class Row(msgspec.Struct, forbid_unknown_fields=True):
    """One request of a trace file: seconds from the start, model, lengths in tokens."""

    time: float
    model: str
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""


def check(workload: Workload) -> None:
    """Raise ConfigError, naming the field, unless the workload can be planned."""
    if not workload.models:
        raise ConfigError("models: at least one model is needed")
    if workload.requests < 1:
        raise ConfigError(f"requests: expected 1 or more, got {workload.requests}")
    if workload.rate < 0 or workload.concurrency < 0 or workload.burstiness <= 0:
        raise ConfigError("rate, concurrency: expected 0 or more; burstiness: more than 0")
    if workload.arrival == "bursty" and workload.burstiness < 1:
        raise ConfigError("burstiness: expected 1 or more for bursty arrivals")
    check_popularity(workload.popularity)
    for law in (workload.prompt_length, workload.output_length):
        draw_lengths(law, 0, np.random.default_rng(0))
    _pair(workload.token_range, "token_range", "LOW:HIGH")
    if workload.shared_prefix:
        _pair(workload.shared_prefix, "shared_prefix", "TOKENS:GROUPS", ordered=False)


def plan(workload: Workload, trace: Sequence[Row] = ()) -> list[Planned]:
    """The requests of a workload, in order of sending; equal workloads give equal plans.

    A trace brings times, models, tenants and lengths of its own and replaces those of the
    workload. Raises ConfigError.
    """
    check(workload)
    if not (trace or workload.rate or workload.concurrency):
        raise ConfigError("concurrency or rate: one of them must be given")
    rows = sorted(trace, key=lambda row: row.time) or _draw_rows(workload)
    groups = _prefix_groups(workload, len(rows))
    tokens = _generator(workload, "tokens")
    prefix_tokens = _prefix_tokens(workload)
    planned = []
    for index, (row, group) in enumerate(zip(rows, groups, strict=True)):
        own = max(1, row.prompt_tokens - prefix_tokens)
        ids = _prefix(workload, group) + _draw_tokens(workload, own, tokens)
        prompt = " ".join(_WORDS[i % len(_WORDS)] for i in ids) if workload.text_prompts else ids
        planned.append(
            Planned(index, row.time, row.model, row.tenant, prompt, len(ids), row.output_tokens)
        )
    return planned


def rows_of(planned: Sequence[Planned]) -> list[Row]:
    """The trace of a plan."""
    return [Row(p.at, p.model, p.prompt_tokens, p.output_tokens, p.tenant) for p in planned]


def _generator(workload: Workload, part: str) -> np.random.Generator:
    return np.random.default_rng([workload.seed, zlib.crc32(part.encode())])


def _draw_rows(workload: Workload) -> list[Row]:
    count = workload.requests
    times = [0.0] * count
    if workload.rate:
        times = draw_arrivals(
            workload.arrival,
            workload.rate,
            workload.burstiness,
            count,
            _generator(workload, "arrivals"),
        )
    models = draw_models(
        workload.popularity, len(workload.models), count, _generator(workload, "models")
    )
    prompts = draw_lengths(workload.prompt_length, count, _generator(workload, "prompts"))
    outputs = draw_lengths(workload.output_length, count, _generator(workload, "outputs"))
    tenants = workload.tenants or ("",)
    chosen = _generator(workload, "tenants").integers(0, len(tenants), count).tolist()
    return [
        Row(time, workload.models[model], prompt, output, tenants[tenant])
        for time, model, prompt, output, tenant in zip(
            times, models, prompts, outputs, chosen, strict=True
        )
    ]


def _prefix_tokens(workload: Workload) -> int:
    return int(workload.shared_prefix.partition(":")[0] or 0)


def _prefix_groups(workload: Workload, count: int) -> list[int]:
    groups = int(workload.shared_prefix.partition(":")[2] or 1)
    chosen: list[int] = _generator(workload, "groups").integers(0, groups, count).tolist()
    return chosen


def _prefix(workload: Workload, group: int) -> list[int]:
    length = _prefix_tokens(workload)
    return _draw_tokens(workload, length, _generator(workload, f"prefix {group}")) if length else []


def _draw_tokens(workload: Workload, count: int, random: np.random.Generator) -> list[int]:
    low, high = _pair(workload.token_range, "token_range", "LOW:HIGH")
    ids: list[int] = random.integers(low, high, count).tolist()
    return ids


def _pair(text: str, field: str, form: str, ordered: bool = True) -> tuple[int, int]:
    first, _, second = text.partition(":")
    if not (first.isdecimal() and second.isdecimal()) or int(second) < 1:
        raise ConfigError(f"{field}: expected {form}, got {text!r}")
    if ordered and int(first) >= int(second):
        raise ConfigError(f"{field}: expected {form} with LOW below HIGH, got {text!r}")
    return int(first), int(second)
