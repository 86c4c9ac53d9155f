"""Storing what an adapter adds and replaces."""

from __future__ import annotations

import msgspec

from blockllm.core import Layer
from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.plan import AdapterPlan
from blockllm.zoo.adapters.stack import check_meetings, check_replaced, merge
from blockllm.zoo.digest import layer_digest
from blockllm.zoo.packs import PackWriter, Readable
from blockllm.zoo.records import Record, Targets
from blockllm.zoo.snapshot import make_target


def store_adapter(
    plan: AdapterPlan, name: str, root: str, base: Record, writer: PackWriter
) -> Record:
    """Write the adapter's new tensors as one pack; layers with replaced tensors become new ones.

    The base may be an adapter itself: what it changes applies too. Raises AdapterMismatch where
    the two do not go together.
    """
    check_meetings(base.targets, plan)
    _check_virtual(plan, base)
    additions: dict[tuple[str, int, str], Readable] = {
        ("target", place, part): source
        for place, addition in enumerate(plan.additions)
        for part, source in addition.parts.items()
    }
    replaced = {("layer", *place): source for place, source in plan.replaced.items()}
    stored = writer.add({**additions, **replaced})
    # peft saves copies of embeddings that it did not train
    new = [p for p in plan.replaced if stored["layer", *p] != base.layers[p[0]].tensors[p[1]]]
    check_replaced(base.targets, new)
    layers = list(base.layers)
    for position, key in new:
        function = layers[position].function
        tensors = {**layers[position].tensors, key: stored["layer", position, key]}
        layers[position] = Layer(layer_digest(function, tensors), function, tensors)
    targets: Targets = {}
    for place, (position, module, kind, parts, settings) in enumerate(plan.additions):
        own = {part: stored["target", place, part] for part in parts}
        target = make_target({"kind": kind, **settings}, own)
        modules = targets.setdefault(position, {})
        modules[module] = (*modules.get(module, ()), target)
    return msgspec.structs.replace(
        base,
        name=name,
        kind="stack" if base.targets else plan.kind,
        parent=base.name,
        root=root,
        layers=tuple(layers),
        targets=merge(base.targets, targets),
        assets={},
    )


def _check_virtual(plan: AdapterPlan, base: Record) -> None:
    for addition in plan.additions:
        if addition.kind in ("prefix", "prompt"):
            tokens = max(source.entry.shape[0] for source in addition.parts.values())
            if tokens + 1 >= base.max_context:
                raise AdapterMismatch(
                    f"{tokens} virtual tokens leave no room in a context of {base.max_context}"
                )
