"""What deltas do to one linear, whatever their kind, brought to one form:

    y = gain · (W (input_gain · x) + b) + bias + B A x + D x

Base weights multiply all rows of a hop at once; the rest is per segment. Some outputs may have rows
of weights of their own instead of W's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from blockllm.core import (
    BiasTarget,
    CodedTarget,
    DoraTarget,
    GainTarget,
    LoraTarget,
    RowsTarget,
    SparseTarget,
    Target,
    Tensor,
)
from blockllm.engine.kernels.adapter_pool import Update
from blockllm.engine.kernels.coded import Difference
from blockllm.engine.layers.differences import load_difference
from blockllm.engine.layers.rows import OwnOutputs, load_outputs
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import Loader, TensorSource
from blockllm.errors import UnsupportedModel

Targets = Mapping[str, tuple[Target, ...]]  # by module


class BaseLinear(NamedTuple):
    """The tensors of the linear that targets change; with a scale the weight is int8."""

    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None


class Change(NamedTuple):
    """What one model changes at one linear."""

    input_gain: torch.Tensor | None = None  # [in]
    gain: torch.Tensor | None = None  # [out]
    bias: torch.Tensor | None = None  # [out]
    update: Update | None = None
    differences: tuple[Difference, ...] = ()
    outputs: OwnOutputs | None = None  # whose rows of W are its own


def combine(targets: Sequence[Target], base: BaseLinear, load: Loader) -> Change:
    """All targets of one linear as one change. Raises UnsupportedModel for kinds that do not go
    together."""
    changes = [_change(target, base, load) for target in targets]
    if len(changes) == 1:
        return changes[0]
    own = [c.outputs for c in changes if c.outputs is not None]
    if own:
        if len(own) > 1 or not all(isinstance(t, LoraTarget | RowsTarget) for t in targets):
            raise UnsupportedModel("rows of a weight go together with low-rank updates only")
        return Change(update=stack([c.update for c in changes if c.update]), outputs=own[0])
    # a bias beside DoRA is not scaled by it; anything else beside a gain would have to be
    gains = [c.gain for c in changes if c.gain is not None]
    updated = sum(c.update is not None for c in changes)
    scales = any(isinstance(target, GainTarget) for target in targets)
    if scales or (gains and (updated > 1 or any(c.differences for c in changes))):
        raise UnsupportedModel("only deltas that add something can be stacked on one linear")
    biases = [c.bias for c in changes if c.bias is not None]
    updates = [c.update for c in changes if c.update is not None]
    differences = tuple(d for c in changes for d in c.differences)
    gain = gains[0] if gains else None
    return Change(gain=gain, bias=_sum(biases), update=stack(updates), differences=differences)


def _change(target: Target, base: BaseLinear, load: Loader) -> Change:
    match target:
        case LoraTarget():
            return Change(update=low_rank(target, load))
        case DoraTarget():
            return _dora(target, base, load)
        case BiasTarget():
            bias = load.load(target.bias)
            return Change(bias=bias - load.load(base.bias) if base.bias else bias)
        case GainTarget(side="output"):
            return Change(gain=load.load(target.gain))
        case GainTarget():
            return Change(input_gain=load.load(target.gain))
        case CodedTarget() | SparseTarget():
            return Change(differences=(load_difference(target, base.weight.shape, load),))
        case RowsTarget() if base.bias is None:
            return Change(outputs=load_outputs(target, base.weight.shape, load))
    raise UnsupportedModel(f"a linear takes no delta of the kind {type(target).__name__}")


def low_rank(target: LoraTarget, load: TensorSource) -> Update:
    """The target as kernels take it."""
    bias = load.load(target.bias) if target.bias else None
    return Update(load.load(target.a), load.load(target.b).t().contiguous(), target.scale, bias)


def _dora(target: DoraTarget, base: BaseLinear, load: TensorSource) -> Change:
    a, b = load.load(target.a), load.load(target.b)
    weight = load.read(base.weight).float()
    if base.scale is not None:
        weight = weight * load.load(base.scale).float()[:, None]
    merged = torch.addmm(weight, b.float(), a.float(), alpha=target.scale)
    length = torch.linalg.vector_norm(merged, dim=1)  # [out]
    gain = (load.load(target.magnitude).float() / length).to(a.dtype)
    update = Update(a, (gain[:, None] * b).t().contiguous(), target.scale, None)
    bias = (1 - gain) * load.load(base.bias) if base.bias else None
    return Change(gain=gain, bias=bias, update=update)


def _sum(parts: Sequence[torch.Tensor]) -> torch.Tensor | None:
    return torch.stack(list(parts)).sum(0) if parts else None


def stack(updates: Sequence[Update]) -> Update | None:
    """Several low-rank updates of one linear as one: their ranks side by side."""
    if not updates:
        return None
    if len(updates) == 1:
        return updates[0]
    biases = [u.scale * u.bias for u in updates if u.bias is not None]
    a = torch.cat([u.a for u in updates])
    return Update(a, torch.cat([u.scale * u.b for u in updates]), 1.0, _sum(biases))


class Affine:
    """The gains and biases of all models at one linear, applied segment by segment."""

    def __init__(
        self, changes: Sequence[Mapping[str, Change]], columns: Mapping[str, slice]
    ) -> None:
        """`changes` by model, by the names of `columns`, which are parts of y."""
        self._inputs = [_input_gain(own, columns) for own in changes]
        self._outputs = [_outputs(own, columns) for own in changes]
        self.changes_inputs = any(gain is not None for gain in self._inputs)
        self.changes_outputs = any(self._outputs)

    def before(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """The linear's input, [rows, in]; `x` stays as it is."""
        if self.changes_inputs and segments:
            x = x.clone()
            for start, stop, gain in segments.own(self._inputs):
                x[start:stop] *= gain
        return x

    def after(self, y: torch.Tensor, segments: Segments) -> None:
        """Change the linear's output [rows, out] in place."""
        for start, stop, parts in segments.own(self._outputs):
            for columns, gain, bias in parts:
                part = y[start:stop, columns]
                if gain is not None:
                    part *= gain
                if bias is not None:
                    part += bias


_Part = tuple[slice, torch.Tensor | None, torch.Tensor | None]


def _outputs(own: Mapping[str, Change], columns: Mapping[str, slice]) -> list[_Part] | None:
    parts = [
        (columns[name], change.gain, change.bias)
        for name, change in own.items()
        if change.gain is not None or change.bias is not None
    ]
    return parts or None


def _input_gain(own: Mapping[str, Change], columns: Mapping[str, slice]) -> torch.Tensor | None:
    gains = [change.input_gain for change in own.values() if change.input_gain is not None]
    if not gains:
        return None
    if len(gains) < len(columns) or not all(torch.equal(gains[0], gain) for gain in gains):
        names = ", ".join(columns)
        raise UnsupportedModel(f"{names} read one input: all or none of them scale it, equally")
    return gains[0]
