"""Which targets may meet: an adapter on another adapter, or several targets of one module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from blockllm.errors import AdapterMismatch, ZooError
from blockllm.zoo.adapters.plan import AdapterPlan
from blockllm.zoo.records import Targets

# each adds something of its own to a linear's output, whatever else is added
_ADDED = {"lora", "coded", "sparse"}
_VIRTUAL = {"prefix", "prompt"}


def check_meetings(below: Targets, plan: AdapterPlan) -> None:
    """Raise AdapterMismatch, naming the module, if the plan's targets cannot apply together with
    each other and with those of the adapter `below`."""
    kinds: dict[tuple[int, str], list[str]] = {}
    new_rows = {(a.position, a.module) for a in plan.additions if a.kind == "rows"}
    for position, modules in below.items():
        for module, group in modules.items():
            kinds[position, module] = [str(target.__struct_config__.tag) for target in group]
    for place in sorted(
        new_rows & kinds.keys()
    ):  # rows of what: of the base's weight, or of the changed?
        if not set(kinds[place]) <= _VIRTUAL:
            raise AdapterMismatch(f"{_where(*place)}: {kinds[place][0]}, rows cannot be stacked")
    for addition in plan.additions:
        kinds.setdefault((addition.position, addition.module), []).append(addition.kind)
    for place, met in kinds.items():
        if not _fit(met):
            names = ", ".join(sorted(met))
            raise AdapterMismatch(f"{_where(*place)}: {names} cannot be stacked")
    virtual = {kind for met in kinds.values() for kind in met} & _VIRTUAL
    if len(virtual) > 1:
        raise AdapterMismatch("a prefix and a prompt cannot be stacked")


def check_replaced(below: Targets, places: Iterable[tuple[int, str]]) -> None:
    """Raise AdapterMismatch if tensors of these places (position, tensor) are replaced under a
    target of the adapter `below`."""
    for where in _changed(below, places):
        raise AdapterMismatch(f"{where}: the base changes it, the adapter replaces it")


def check_used(below: Targets, places: Iterable[tuple[int, str]]) -> None:
    """Raise AdapterMismatch if an adapter was computed from weights that the adapter `below`
    changes: peft would compute it from the changed ones, or in another order."""
    for where in _changed(below, (place for place in places if place[1].endswith("weight"))):
        raise AdapterMismatch(
            f"{where}: the base changes it, the adapter is computed from it; add it to the base "
            "below, or merge the two"
        )


def rescale(plan: AdapterPlan, factor: float) -> AdapterPlan:
    """The plan with its updates' scales multiplied; raises ZooError for kinds without a scale."""
    if plan.kind not in ("lora", "bottleneck"):
        raise ZooError(f"scale: lora and bottleneck adapters have one, {plan.kind} has not")
    additions = [
        addition._replace(settings={**addition.settings, "scale": scale * factor})
        if (scale := addition.settings.get("scale")) is not None
        else addition
        for addition in plan.additions
    ]
    return plan._replace(additions=additions)


def merge(below: Targets, above: Targets) -> Targets:
    """Both, those of `below` first."""
    merged = {position: dict(modules) for position, modules in below.items()}
    for position, modules in above.items():
        own = merged.setdefault(position, {})
        for module, group in modules.items():
            own[module] = (*own.get(module, ()), *group)
    return merged


def _fit(group: Iterable[str]) -> bool:
    counts = Counter(group)
    if counts.total() == 1 or set(counts) <= _ADDED:
        return True
    if counts.keys() & _VIRTUAL and max(counts[kind] for kind in _VIRTUAL) == 1:
        return counts["rows"] < 2 and set(counts) - _VIRTUAL <= {"bottleneck", "lora", "rows"}
    if counts["rows"]:  # low-rank updates are added to the rows as to the base's
        return counts["rows"] == 1 and set(counts) <= {"lora", "rows"}
    if set(counts) == {"bottleneck"}:
        return True
    others = set(counts) - {"bias"}
    return counts["bias"] == 1 and (others <= _ADDED or counts == {"bias": 1, "dora": 1})


def _changed(below: Targets, places: Iterable[tuple[int, str]]) -> Iterator[str]:
    for position, tensor in sorted(places):
        module = tensor.rpartition(".")[0] or ("embed" if position == 0 else "head")
        if module in below.get(position, {}):
            yield _where(position, module)


def _where(position: int, module: str) -> str:
    return module if module in ("embed", "head", "norm") else f"layer {position - 1}, {module}"
