"""What full fine-tunes kept as compressed deltas add to one linear's output.

The base weight multiplies all rows; each tile's rows then add their own model's difference from it,
in few bits (BitDelta, arXiv 2402.10193; DeltaZip, arXiv 2312.05215) or sparse. Merged weights are
never built: the CPU kernel (`delta.cpp`) decodes one panel at a time, the plain twin one weight.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.engine.kernels.adapters import AddUpdates, panels
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.kernels.cpu import native


class Coded(NamedTuple):
    """Element [o, i] is scales[o, i // group] · (code − (2^bits − 1) / 2)."""

    codes: torch.Tensor  # [out, in · bits / 8] uint8, the first code of a byte in its lowest bits
    scales: torch.Tensor  # [out, groups]
    bits: int


class Sparse(NamedTuple):
    """Elements row by row; the others are zero."""

    values: torch.Tensor  # [elements]
    columns: torch.Tensor  # [elements] int32
    ends: torch.Tensor  # [out] int32


Difference = Coded | Sparse


def decode(coded: Coded) -> torch.Tensor:
    """The elements of all rows, [out, in], in the scales' dtype."""
    out, groups = coded.scales.shape
    shifts = torch.arange(0, 8, coded.bits, dtype=torch.uint8, device=coded.codes.device)
    highest = 2**coded.bits - 1
    codes = (coded.codes[:, :, None] >> shifts) & highest  # [out, bytes, codes of a byte]
    centred = codes.view(out, groups, -1).to(coded.scales.dtype) - highest / 2
    elements: torch.Tensor = centred * coded.scales[:, :, None]
    return elements.view(out, -1)


def look_up(difference: Difference, rows: torch.Tensor, inputs: int) -> torch.Tensor:
    """Some rows of the difference's weight, [len(rows), inputs]."""
    if isinstance(difference, Coded):
        return decode(Coded(difference.codes[rows], difference.scales[rows], difference.bits))
    values, columns, ends = difference
    bounds = F.pad(ends.long(), (1, 0))
    sizes = bounds[rows + 1] - bounds[rows]
    owners = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), sizes)
    within = torch.arange(len(owners), device=rows.device) - (sizes.cumsum(0) - sizes)[owners]
    elements = bounds[rows][owners] + within
    dense = values.new_zeros(len(rows), inputs)
    dense[owners, columns[elements].long()] = values[elements]
    return dense


def densify(difference: Difference, inputs: int) -> torch.Tensor:
    """The difference as a weight, [out, inputs]."""
    out = len(difference.scales if isinstance(difference, Coded) else difference.ends)
    rows = torch.arange(out, device=difference[0].device)
    return look_up(difference, rows, inputs)


def make_differences(
    adapters: Sequence[Mapping[str, Sequence[Difference]]],
    columns: Mapping[str, slice],
    kernels: Kernels = ALL_CORES,
) -> AddUpdates | None:
    """Adds each tile's differences; None if no adapter has one. Keys of each adapter are names of
    parts, `columns` says where a part lies in y; `kernels`: those to make them for."""
    first = next((one for own in adapters for group in own.values() for one in group), None)
    if first is None:
        return None
    if kernels.native(first.scales if isinstance(first, Coded) else first.values):
        return PackedDifferences(adapters, columns).add_to

    def add(
        y: torch.Tensor, x: torch.Tensor, tiles: torch.Tensor, block_rows: int, kernels: Kernels
    ) -> None:
        add_plain(y, x, tiles, adapters, columns)

    return add


def add_plain(
    y: torch.Tensor,
    x: torch.Tensor,
    tiles: torch.Tensor,
    adapters: Sequence[Mapping[str, Sequence[Difference]]],
    columns: Mapping[str, slice],
) -> None:
    """The plain twin: every difference as a whole weight, one at a time."""
    places: dict[int, list[tuple[int, int]]] = {}
    for first, end, adapter in tiles.tolist():
        places.setdefault(adapter, []).append((first, end))
    for adapter, rows in places.items():
        for name, group in adapters[adapter].items():
            for difference in group:
                weight = densify(difference, x.shape[1]).to(x.dtype)
                for first, end in rows:
                    y[first:end, columns[name]] += F.linear(x[first:end], weight)


class PackedDifferences:
    """Packed copies of every adapter's codes, and the table of pointers the kernel walks."""

    def __init__(
        self, adapters: Sequence[Mapping[str, Sequence[Difference]]], columns: Mapping[str, slice]
    ) -> None:
        """See `make_differences`."""
        self._kept: list[torch.Tensor] = []  # what the table points into
        stacked = max(len(group) for own in adapters for group in own.values())
        # by model, part and place: codes, values, ends, bits, group, first column, columns
        self._parts = np.zeros((len(adapters), len(columns), stacked, 7), np.int64)
        self._parts[..., 3] = -1
        for i, own in enumerate(adapters):
            for j, (name, where) in enumerate(columns.items()):
                for place, difference in enumerate(own.get(name, ())):
                    facts = self._pack(difference)
                    self._parts[i, j, place] = *facts, where.start, where.stop - where.start

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _pack(self, difference: Difference) -> tuple[int, ...]:
        if isinstance(difference, Coded):
            codes, scales, bits = difference
            group = codes.shape[1] * 8 // bits // scales.shape[1]
            return (
                self._keep(panels(codes, native.panel_width())),
                self._keep(panels(scales, native.panel_width())),
                0,
                bits,
                group,
            )
        values, columns, ends = map(self._keep, difference)
        return columns, values, ends, 0, 1

    def add_to(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        tiles: torch.Tensor,
        block_rows: int,
        kernels: Kernels,
    ) -> None:
        """Add each tile's differences in place; see `AddUpdates`."""
        rows, inputs = x.shape
        scratch = torch.empty(rows * inputs)
        native.library().delta_run(
            *(y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0), inputs),
            *(tiles.data_ptr(), len(tiles)),
            *(self._parts.ctypes.data, *self._parts.shape[1:3], scratch.data_ptr()),
            kernels.threads,
        )
