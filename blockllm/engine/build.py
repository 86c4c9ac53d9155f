"""From a zoo to a ready engine: chains → spans → memory plan → pages → weights."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from functools import partial
from typing import NamedTuple, Protocol

import torch

from blockllm.chain import Route, SpanPlan, one_block_per_layer, plan_spans
from blockllm.chain.spans import num_kv_layers
from blockllm.config import EngineSettings
from blockllm.core import Chain
from blockllm.engine.attention import make_attention
from blockllm.engine.costs.profiles import FindingStore, describe_device, find_costs
from blockllm.engine.costs.row_limits import row_limits
from blockllm.engine.costs.span import SpanCost
from blockllm.engine.costs.turn_budget import ObservedBudget, ProfiledBudget, TurnBudget
from blockllm.engine.device.allocator import keep_freed_memory
from blockllm.engine.device.budget import KVClass, Precision, context_of, plan_kv, weight_bytes
from blockllm.engine.device.choose import choose_device, choose_dtype, usable_bytes
from blockllm.engine.kernels.choice import Kernels, usable_cores
from blockllm.engine.kernels.cpu.build import is_built, native_library
from blockllm.engine.kernels.matmul import packs
from blockllm.engine.kv.cache import KVCache, route_kv
from blockllm.engine.run.executor import Executor
from blockllm.engine.run.graphs import CudaCapture, GraphExecutor
from blockllm.engine.sequence.place import Place
from blockllm.engine.sequence.sequence import RouteState, StopState
from blockllm.engine.weights.loader import PackStore, TensorLoader
from blockllm.errors import ConfigError, OutOfMemory, UnknownModel
from blockllm.zoo.reports import Progress, silent

_LOADING = "loading bytes of weights"


class ChainStore(PackStore, Protocol):
    """The part of the zoo that the engine needs."""

    def chains(self, names: SequenceOf[str] | None = None) -> dict[str, Chain]: ...


class Parts(NamedTuple):
    """What an engine is made of; fixed once built."""

    plan: SpanPlan
    states: dict[str, RouteState]  # by model
    caches: list[KVCache]  # one per KV shape
    executor: Executor | GraphExecutor
    kernels: Kernels  # what computes; lanes may have fewer threads
    num_lanes: int
    precision: Precision
    weight_bytes: int  # of distinct tensors in memory
    weight_bytes_unshared: int  # if every model had its own copy
    budget: TurnBudget | None  # how long a turn may take; None: no limit
    row_limits: Mapping[int, int]  # by span, of one hop; a span that is absent has none


def prepare(settings: EngineSettings, progress: Progress = silent) -> None:
    """What takes long once per machine and not once per load: the CPU's kernels are built."""
    if settings.kernels == "auto" and choose_device(settings.device).type == "cpu":
        if not is_built():
            progress("building kernels", 0, 0)
        native_library()


def build(
    zoo: ChainStore,
    models: SequenceOf[str] | None,
    settings: EngineSettings,
    progress: Progress = silent,
) -> Parts:
    """Load the models (default: all of the zoo) within the memory budget; `progress` is told the
    bytes that were read."""
    _check(settings)
    chains = zoo.chains(models)
    if not chains:
        raise UnknownModel("the zoo is empty; add a model with `blockllm zoo add NAME PATH`")
    prepare(settings, progress)
    if settings.batching == "lanes":
        _check_lanes(settings)
    kernels = Kernels(settings.threads or usable_cores(), settings.kernels == "auto")
    device = choose_device(settings.device)
    if device.type == "cpu":
        keep_freed_memory()
    dtype = choose_dtype(settings.dtype, chains.values(), device, kernels)
    lazy = settings.cut == "lazy" and settings.batching != "layered"  # waves wait between layers
    served = [chain if lazy else one_block_per_layer(chain) for chain in chains.values()]
    plan = plan_spans(served, merge=lazy)
    precision = Precision(dtype.itemsize, keeps_narrow=packs(device, dtype, kernels))
    classes = plan_kv(plan, settings, precision, usable_bytes(device))
    caches = _make_caches(classes, settings, device, dtype)
    whole = sum(t.nbytes for t in {t.hash: t for c in served for t in c.tensors()}.values())
    tell = partial(_tell_read, progress, whole)
    costs = _costs(zoo, plan, device, dtype, settings)
    loader = TensorLoader(zoo, device, dtype, tell, settings.verify_weights, kernels)
    attention = make_attention("triton" if device.type == "cuda" else "native")
    eager = Executor(plan, loader, caches, attention, dtype, device, kernels)
    executor: Executor | GraphExecutor = eager
    if device.type == "cuda" and kernels.triton(caches[0].tensor):
        executor = GraphExecutor(plan, eager, caches, CudaCapture(), settings.max_sequences)
    return Parts(
        plan=plan,
        states=_states(plan, classes, settings),
        caches=caches,
        executor=executor,
        kernels=kernels,
        num_lanes=2 if settings.batching == "lanes" else 1,
        precision=precision,
        weight_bytes=weight_bytes(chains.values(), precision),
        weight_bytes_unshared=sum(weight_bytes([c], precision) for c in chains.values()),
        budget=_budget(costs, settings),
        row_limits=_row_limits(plan, costs, settings),
    )


def _tell_read(progress: Progress, whole: int, read: int) -> None:
    progress(_LOADING, read, whole)


def _costs(
    zoo: ChainStore,
    plan: SpanPlan,
    device: torch.device,
    dtype: torch.dtype,
    settings: EngineSettings,
) -> dict[int, SpanCost]:
    """Measured costs of all spans on this device, by span; none unless all were measured."""
    is_asked = settings.max_turn_seconds or settings.block_limits == "auto"
    if not is_asked or not isinstance(zoo, FindingStore):
        return {}
    costs = find_costs(zoo, plan, describe_device(device, dtype, settings))
    return costs if len(costs) == len(plan.spans) else {}


def _budget(costs: Mapping[int, SpanCost], settings: EngineSettings) -> TurnBudget | None:
    if not settings.max_turn_seconds:
        return None
    if not costs:
        return ObservedBudget(settings.max_turn_seconds)
    return ProfiledBudget(settings.max_turn_seconds, costs)


def _row_limits(
    plan: SpanPlan, costs: Mapping[int, SpanCost], settings: EngineSettings
) -> dict[int, int]:
    if settings.block_limits.isdecimal():
        return dict.fromkeys(range(len(plan.spans)), int(settings.block_limits))
    if settings.block_limits == "off" or not costs:
        return {}
    return row_limits(plan, costs, settings.max_turn_seconds, settings.max_rows)


def _check_lanes(settings: EngineSettings) -> None:
    if choose_device(settings.device).type != "cpu":
        raise ConfigError("batching: `lanes` share the cores of a CPU; choose `blocks` on a GPU")
    if (settings.threads or usable_cores()) < 2:
        raise ConfigError("batching: `lanes` need two threads or more")
    if settings.overlap == "on":
        raise ConfigError("overlap: expected `off` or `auto` with batching `lanes`")


def _check(settings: EngineSettings) -> None:
    if settings.page_size < 1 or settings.max_sequences < 1:
        raise ConfigError("page_size and max_sequences: expected at least 1")
    if not settings.max_turn_seconds >= 0:
        raise ConfigError(f"max_turn_seconds: expected 0 or more, got {settings.max_turn_seconds}")
    if settings.max_rows < settings.max_sequences:
        raise ConfigError(
            f"max_rows: expected at least max_sequences ({settings.max_sequences}), so that every "
            f"running sequence gets its row, got {settings.max_rows}"
        )


def _make_caches(
    classes: SequenceOf[KVClass],
    settings: EngineSettings,
    device: torch.device,
    dtype: torch.dtype,
) -> list[KVCache]:
    try:
        return [_make_cache(kv, settings, device, dtype) for kv in classes]
    except (MemoryError, OSError, torch.OutOfMemoryError) as error:
        size = sum(
            kv.num_pages * kv.page_bytes(settings.page_size, dtype.itemsize) for kv in classes
        )
        raise OutOfMemory(
            f"memory: {settings.memory} leaves {size / 1e9:,.1f} GB to KV pages, more than the"
            " system gives; lower it"
        ) from error


def _make_cache(
    kv: KVClass, settings: EngineSettings, device: torch.device, dtype: torch.dtype
) -> KVCache:
    # a sequence holds no more pages than there are, whatever length its model claims to take
    width = min(-(-kv.max_context // settings.page_size), kv.num_pages)
    return KVCache(
        shape=kv.shape,
        layers_per_page=kv.layers_per_page,
        page_size=settings.page_size,
        num_pages=kv.num_pages,
        table_size=(settings.max_sequences, kv.max_bundles, width),
        device=device,
        dtype=dtype,
        reuse=settings.prefix_cache,
    )


def _states(
    plan: SpanPlan, classes: list[KVClass], settings: EngineSettings
) -> dict[str, RouteState]:
    """Models are ranked by path, so that models of one path are neighbours in a batch."""
    class_of = {model: i for i, kv in enumerate(classes) for model in kv.models}
    by_path = sorted(plan.routes.values(), key=lambda r: [stop.span for stop in r.stops])
    return {
        route.chain.model: RouteState(
            rank=rank,
            route=route,
            stops=_stops(plan, route),
            kv=route_kv(route, classes[class_of[route.chain.model]].layers_per_page),
            kv_class=class_of[route.chain.model],
            max_context=context_of(route.chain, settings),
        )
        for rank, route in enumerate(by_path)
    }


def _stops(plan: SpanPlan, route: Route) -> tuple[StopState, ...]:
    stops = []
    for stop in route.stops:
        keeps_kv = any(num_kv_layers(block) for block in plan.spans[stop.span].blocks)
        place = Place(stop.span, stop.first_kv_layer if keeps_kv else None)
        stops.append(StopState(place, stop))
    return tuple(stops)
