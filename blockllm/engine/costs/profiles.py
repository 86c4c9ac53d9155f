"""Profiles of spans as the catalogue keeps them, and how an engine finds those of its own spans.

Made by `offline/profile.py`. A profile holds for every span of one shape on one device: the key
is functions, dtypes and shapes, never what the weights are.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import msgspec
import torch
from blake3 import blake3

from blockllm.chain import Span, SpanPlan
from blockllm.config import EngineSettings
from blockllm.core import Delta, Layer, target_tensors
from blockllm.engine.costs.span import HopSize, SpanCost
from blockllm.engine.kernels.choice import usable_cores
from blockllm.zoo.digest import canonical

KIND = "profile"  # of the findings: subject is the spans' shape, object the device's key

Found = TypeVar("Found")


class Device(msgspec.Struct, frozen=True):
    """What a measured time holds for: hardware, settings and versions."""

    name: str  # processor or GPU
    kind: str  # cpu, cuda
    threads: int
    dtype: str  # of the computation
    kernels: str  # auto, plain
    versions: dict[str, str]

    @property
    def key(self) -> str:
        """Changes when any of it does."""
        return str(blake3(msgspec.json.encode(self, order="sorted")).hexdigest())


class FitError(msgspec.Struct, frozen=True):
    """|estimate / measured - 1| over hops that the fit has not seen."""

    median: float
    p95: float
    hops: int


class LoadSeconds(msgspec.Struct, frozen=True):
    """Time to bring a span's weights one tier nearer; None where it could not be measured."""

    disk: float | None  # pack files → page cache, nothing of them in memory before
    page_cache: float  # page cache → this process, read through once
    ready: float  # page cache → weights as the executor multiplies by them


class Sample(msgspec.Struct, frozen=True):
    """One measured hop size: the median over rounds."""

    size: HopSize
    seconds: float


class SpanProfile(msgspec.Struct, frozen=True):
    """What is known about spans of one shape on one device."""

    shape: str
    device: Device
    format: str  # dtypes of the weights
    layers: str  # "embed", "4 decoder", "2 decoder + head"
    nbytes: int  # of the span's distinct tensors, as stored
    cost: SpanCost
    error: FitError
    load: LoadSeconds
    samples: tuple[Sample, ...]
    created: float  # seconds since 1970


@runtime_checkable
class FindingStore(Protocol):
    """The part of the zoo that keeps profiles."""

    def findings(self, kind: str, type: type[Found]) -> dict[tuple[str, str], Found]: ...


def find_costs(store: FindingStore, plan: SpanPlan, device: Device) -> dict[int, SpanCost]:
    """Measured costs of the plan's spans on this device, by span; unmeasured ones are absent."""
    known = store.findings(KIND, SpanProfile)
    keys = [(shape, device.key) for shape in shapes_of(plan)]
    return {index: known[key].cost for index, key in enumerate(keys) if key in known}


def describe_device(device: torch.device, dtype: torch.dtype, settings: EngineSettings) -> Device:
    """What an engine with these settings computes on."""
    cuda = device.type == "cuda"
    return Device(
        name=torch.cuda.get_device_name(device) if cuda else _processor(),
        kind=device.type,
        threads=settings.threads or usable_cores(),
        dtype=str(dtype).removeprefix("torch."),
        kernels=settings.kernels,
        versions={"blockllm": version("blockllm"), "torch": str(torch.__version__)},
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return "cpu"


def shapes_of(plan: SpanPlan) -> list[str]:
    """The shape of every span, in order: spans of equal shape cost the same."""
    riders: dict[int, list[Delta]] = {span.index: [] for span in plan.spans}
    for route in plan.routes.values():
        for stop in route.stops:
            riders[stop.span] += [delta for delta in stop.deltas if delta is not None]
    return [shape_key(span, riders[span.index]) for span in plan.spans]


def shape_key(span: Span, deltas: Iterable[Delta]) -> str:
    """Equal for spans that cost the same: functions, dtypes and shapes of their tensors, and the
    shapes of what models add there. What the weights are does not matter."""
    layers = [_layer_shape(layer) for block in span.blocks for layer in block.layers]
    return _digest([*layers, "riders", *sorted({_delta_shape(delta) for delta in deltas})])


def _layer_shape(layer: Layer) -> str:
    tensors = sorted((name, t.dtype, t.shape) for name, t in layer.tensors.items())
    return _digest([canonical(layer.function), msgspec.json.encode(tensors).decode()])


def _delta_shape(delta: Delta) -> str:
    shapes = [
        (key, target.__struct_config__.tag, [(t.dtype, t.shape) for t in parts.values()])
        for key, group in sorted(delta.targets.items())
        for target, parts in ((target, target_tensors(target)) for target in group)
    ]
    return _digest([msgspec.json.encode(shapes).decode()])


def _digest(lines: Iterable[str]) -> str:
    return str(blake3("\n".join(lines).encode()).hexdigest())
