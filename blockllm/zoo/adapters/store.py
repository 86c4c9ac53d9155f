"""Storing what an adapter adds and replaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from blockllm.core import EmbedFunction, Function, HeadFunction, Layer, Tensor
from blockllm.errors import AdapterMismatch
from blockllm.zoo.adapters.plan import AdapterPlan, Computed, Layers, Part
from blockllm.zoo.adapters.stack import check_meetings, check_replaced, check_used, merge
from blockllm.zoo.digest import layer_digest
from blockllm.zoo.packs import PackWriter
from blockllm.zoo.records import Record, Targets
from blockllm.zoo.snapshot import make_target

if TYPE_CHECKING:
    from blockllm.zoo.arrays import Weights

_Key = tuple[int, int | None, str]  # position, target's place in the plan or the layer's own, name


def store_adapter(
    plan: AdapterPlan, name: str, root: str, base: Record, writer: PackWriter
) -> Record:
    """Write the adapter's new tensors; layers with replaced tensors become new ones.

    The base may be an adapter itself: what it changes applies too. Raises AdapterMismatch where
    the two do not go together.
    """
    if plan.layers is not None:
        base = _arrange(base, plan.layers)
    check_meetings(base.targets, plan)
    _check_virtual(plan, base)
    parts: dict[_Key, Part] = {
        (addition.position, place, name): part
        for place, addition in enumerate(plan.additions)
        for name, part in addition.parts.items()
    }
    parts |= {(position, None, name): part for (position, name), part in plan.replaced.items()}
    stored = _add(parts, base, writer)
    # peft saves copies of embeddings that it did not train
    new = [
        (position, name)
        for position, name in plan.replaced
        if stored[position, None, name] != base.layers[position].tensors.get(name)
    ]
    check_replaced(base.targets, new)
    layers = list(base.layers)
    for position, key in new:
        tensors = {**layers[position].tensors, key: stored[position, None, key]}
        function = _resized(layers[position].function, tensors)
        layers[position] = Layer(layer_digest(function, tensors), function, tensors)
    targets: Targets = {}
    for place, (position, module, kind, own_parts, settings) in enumerate(plan.additions):
        own = {name: stored[position, place, name] for name in own_parts}
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


class _Kept:
    """A computed tensor as one to be stored: kept from its first reading until `forget`."""

    def __init__(self, tensor: Computed, weights: Weights) -> None:
        self.entry, self.where = tensor.entry, tensor.where
        self._tensor, self._weights = tensor, weights
        self._data: memoryview | None = None

    def chunks(self) -> Iterator[memoryview]:
        """All bytes."""
        if self._data is None:
            self._data = self._tensor.read(self._weights)
        yield self._data

    def forget(self) -> None:
        """Let go of the bytes; the next reading computes them again."""
        self._data = None


def _add(parts: Mapping[_Key, Part], base: Record, writer: PackWriter) -> dict[_Key, Tensor]:
    """The zoo's tensors. Computed ones are stored layer by layer: memory holds those of one."""
    stored = writer.add({k: p for k, p in parts.items() if not isinstance(p, Computed)})
    if len(stored) < len(parts):
        from blockllm.zoo.arrays import Weights

        weights = Weights(base.layers, writer.pack_path)
        layers: dict[int, dict[_Key, _Kept]] = {}
        for key, part in parts.items():
            if isinstance(part, Computed):
                layers.setdefault(key[0], {})[key] = _Kept(part, weights)
        for layer in layers.values():
            stored |= writer.add(layer)
            for kept in layer.values():
                kept.forget()
        check_used(base.targets, weights.used)
    return stored


def _arrange(base: Record, layers: Layers) -> Record:
    if base.targets:
        raise AdapterMismatch(
            f"the adapter repeats layers of its base, but {base.name!r} is an adapter itself: add "
            "it to the model below, or merge the two"
        )
    return msgspec.structs.replace(base, layers=layers)


def _resized(function: Function, tensors: dict[str, Tensor]) -> Function:
    """The function for tensors that may have another vocabulary."""
    if not isinstance(function, EmbedFunction | HeadFunction):
        return function
    return msgspec.structs.replace(function, vocab_size=tensors["weight"].shape[0])


def _check_virtual(plan: AdapterPlan, base: Record) -> None:
    for addition in plan.additions:
        if addition.kind in ("prefix", "prompt"):
            tokens = max(source.entry.shape[0] for source in addition.parts.values())
            if tokens + 1 >= base.max_context:
                raise AdapterMismatch(
                    f"{tokens} virtual tokens leave no room in a context of {base.max_context}"
                )
