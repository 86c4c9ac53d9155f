"""`zoo profile`: measure every span of served models on this device, fit its cost, keep both."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import msgspec

from blockllm.chain import Span, SpanPlan, plan_spans
from blockllm.config import EngineSettings
from blockllm.engine.build import Parts, build
from blockllm.engine.costs.profiles import (
    KIND,
    Device,
    LoadSeconds,
    Sample,
    SpanProfile,
    describe_device,
    shapes_of,
)
from blockllm.engine.costs.span import HopSize
from blockllm.engine.device.choose import choose_device, choose_dtype
from blockllm.errors import UnknownModel
from blockllm.offline import cost_fit
from blockllm.offline.hops import HopDriver, PoolLimits, grid, held_out
from blockllm.offline.load_time import ReadSeconds, tensors_of, time_binding, time_reading
from blockllm.zoo import Progress, Zoo
from blockllm.zoo.reports import silent

_LOAD_TRIES = 3
_CHECKS = 15  # held-out turns per model


class Effort(msgspec.Struct, frozen=True):
    """How much is measured: rounds over all sizes, and the largest sizes."""

    rounds: int = 5
    sequences: int = 32
    context: int = 512
    rows: int = 256


class ProfiledSpan(msgspec.Struct, frozen=True):
    """One span of the served models; `known` profiles were in the catalogue."""

    span: str
    models: tuple[str, ...]
    known: bool
    profile: SpanProfile


def profile(
    zoo: Zoo,
    models: Sequence[str] | None = None,
    settings: EngineSettings | None = None,
    effort: Effort | None = None,
    again: bool = False,
    progress: Progress = silent,
) -> list[ProfiledSpan]:
    """Profiles of every span of `models` (default: all) on the settings' device.

    What the catalogue has for the same shape, device, settings and versions is not measured
    again unless asked for. Raises UnknownModel, OutOfMemory, ConfigError.
    """
    effort = effort or Effort()
    settings = msgspec.structs.replace(settings or EngineSettings(), cut="lazy")
    chains = zoo.chains(models)
    if not chains:
        raise UnknownModel("the zoo is empty; add a model with `blockllm zoo add NAME PATH`")
    where = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, chains.values(), where)
    device = describe_device(where, dtype, settings)
    plan = plan_spans(chains.values())
    shapes = shapes_of(plan)
    known = {} if again else zoo.findings(KIND, SpanProfile)
    missing = {
        shape: plan.spans[shapes.index(shape)]
        for shape in dict.fromkeys(shapes)
        if (shape, device.key) not in known
    }
    made = _measure(zoo, list(chains), settings, missing, _Task(effort, device, progress))
    for shape, found in made.items():
        zoo.record_finding(KIND, shape, device.key, found)
    return [
        ProfiledSpan(
            span=span.name,
            models=span.models,
            known=shape not in made,
            profile=made[shape] if shape in made else known[shape, device.key],
        )
        for span, shape in zip(plan.spans, shapes, strict=True)
    ]


class _Task(NamedTuple):
    effort: Effort
    device: Device
    progress: Progress


def _measure(
    zoo: Zoo, models: list[str], settings: EngineSettings, missing: dict[str, Span], task: _Task
) -> dict[str, SpanProfile]:
    """Profiles of the spans, by shape."""
    if not missing:
        return {}
    # before the engine maps the packs: mapped pages cannot be dropped
    reads = {s: time_reading(zoo, span, _LOAD_TRIES) for s, span in missing.items()}
    parts = build(zoo, models, settings)
    times = _time_hops(parts, set(missing), task)
    cache = parts.caches[0].tensor
    made = {}
    for shape, span in missing.items():
        ready = time_binding(zoo, span, cache.device, cache.dtype, _LOAD_TRIES)
        made[shape] = _describe(shape, span, times[shape], _load(reads[shape], ready), task.device)
    return made


_Seen = dict[tuple[str, HopSize], list[float]]  # seconds by shape and size


class _Times(NamedTuple):
    """Medians of one shape: turns to fit from, and turns to check the fit with."""

    fitted: list[Sample]
    checked: list[Sample]


def _time_hops(parts: Parts, wanted: set[str], task: _Task) -> dict[str, _Times]:
    """Run all turns of all covering models in rounds, each round in another order."""
    shapes = shapes_of(parts.plan)
    effort = task.effort
    driver = HopDriver(parts, PoolLimits(effort.sequences, effort.context, effort.rows))
    turns = []
    for model in cover(parts.plan, wanted):
        limits = driver.limits(model)
        fitted = dict.fromkeys(grid(limits))
        checked = dict.fromkeys(held_out(limits, _CHECKS))
        turns += [(0, driver.make(model, shape)) for shape in fitted]
        turns += [(1, driver.make(model, shape)) for shape in checked if shape not in fitted]
    seen: tuple[_Seen, _Seen] = (defaultdict(list), defaultdict(list))
    order = random.Random(0)
    for number in range(effort.rounds + 1):
        task.progress("timing hops", number, effort.rounds + 1)
        order.shuffle(turns)
        for for_check, grants in turns:
            for hop in driver.run(grants):
                if number:  # the first round warms up
                    seen[for_check][shapes[hop.span], hop.size].append(hop.seconds)
    driver.close()
    return {shape: _Times(*(_medians(found, shape) for found in seen)) for shape in wanted}


def _medians(found: _Seen, shape: str) -> list[Sample]:
    return [Sample(size, median(times)) for (of, size), times in found.items() if of == shape]


def cover(plan: SpanPlan, shapes: set[str]) -> list[str]:
    """Few models that together pass spans of all the shapes, with and without their deltas."""
    of_span = shapes_of(plan)
    passes = {
        model: {
            (of_span[stop.span], any(stop.deltas))
            for stop in route.stops
            if of_span[stop.span] in shapes
        }
        for model, route in plan.routes.items()
    }
    left, chosen = set().union(*passes.values()), []
    while left:
        best = max(passes, key=lambda model: len(passes[model] & left))
        chosen.append(best)
        left -= passes[best]
    return chosen


def _load(read: ReadSeconds, ready: float) -> LoadSeconds:
    return LoadSeconds(disk=read.disk, page_cache=read.page_cache, ready=ready)


def _describe(
    shape: str, span: Span, times: _Times, load: LoadSeconds, device: Device
) -> SpanProfile:
    tensors = tensors_of(span)
    cost = cost_fit.fit(times.fitted)
    kinds = [f.function.__struct_config__.tag for b in span.blocks for f in b.layers]
    return SpanProfile(
        shape=shape,
        device=device,
        format=" + ".join(sorted({tensor.dtype for tensor in tensors})),
        layers=" + ".join(
            kind if kinds.count(kind) == 1 else f"{kinds.count(kind)} {kind}"
            for kind in map(str, dict.fromkeys(kinds))
        ),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        cost=cost,
        error=cost_fit.error_of(cost, times.checked),
        load=load,
        samples=tuple(times.fitted),
        created=time.time(),
    )
