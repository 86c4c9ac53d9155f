"""What the adapters of one linear add to its output, by the device's kernel.

CPU: our own (`lora.cpp`), over packed copies. GPU: Triton. Elsewhere the plain twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.engine.kernels import gpu, native
from blockllm.engine.kernels.packed import PANEL
from blockllm.engine.kernels.triton.pool import Update, make_pool, segmented_lora_plain

# (y [rows, out], changed in place; x [rows, in]; tiles [n, 3] int32 of first row, end, adapter;
# most rows of a tile)
AddUpdates = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], None]

_NARROW = 16  # ranks whose weights lie together in A, as in lora.cpp


def make_adapters(
    adapters: Sequence[Mapping[str, Update]], columns: Mapping[str, slice]
) -> AddUpdates | None:
    """Adds each tile's update; None if no adapter changes this linear. Keys of each adapter are
    names of parts, `columns` says where a part lies in y."""
    sample = next((u.a for updates in adapters for u in updates.values()), None)
    if sample is None:
        return None
    if native.usable(sample):
        return PackedAdapters(adapters, columns).add_to
    pool = make_pool(adapters, columns)
    assert pool is not None

    def add(y: torch.Tensor, x: torch.Tensor, tiles: torch.Tensor, block_rows: int) -> None:
        if gpu.usable(y):
            from blockllm.engine.kernels.triton.lora import segmented_lora

            segmented_lora(y, x, tiles, block_rows, pool)
        else:
            segmented_lora_plain(y, x, tiles, pool)

    return add


def panels(matrix: torch.Tensor, width: int) -> torch.Tensor:
    """[outputs, inputs] → [panels, inputs, width], zeros behind the last output."""
    spare = -len(matrix) % width
    padded = F.pad(matrix, (0, 0, 0, spare)).view(-1, width, matrix.shape[1])
    return padded.transpose(1, 2).contiguous()


class PackedAdapters:
    """Packed copies of every adapter's A and B, and the tables of pointers the kernel walks."""

    def __init__(
        self, adapters: Sequence[Mapping[str, Update]], columns: Mapping[str, slice]
    ) -> None:
        """See `make_adapters`."""
        self._kept: list[torch.Tensor] = []  # what the tables point into
        self._adapters = np.zeros((len(adapters), 2), np.int64)  # a, rank
        # by part: b, bias, first column, columns, first rank, rank
        self._parts = np.zeros((len(adapters), len(columns), 6), np.int64)
        for i, updates in enumerate(adapters):
            if not updates:
                continue
            named = [(j, n, updates[n]) for j, n in enumerate(columns) if n in updates]
            a = torch.cat([update.a for _, _, update in named])  # [sum of ranks, in]
            self._adapters[i] = self._keep(panels(a, _NARROW)), len(a)
            first = 0
            for j, name, update in named:
                self._parts[i, j] = self._part(update, columns[name], first)
                first += len(update.a)

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _part(self, update: Update, columns: slice, first_rank: int) -> tuple[int, ...]:
        b = self._keep(panels(update.b.t() * update.scale, PANEL))
        bias = 0 if update.bias is None else self._keep(update.bias * update.scale)
        size = columns.stop - columns.start
        return b, bias, columns.start, size, first_rank, len(update.a)

    def add_to(
        self, y: torch.Tensor, x: torch.Tensor, tiles: torch.Tensor, block_rows: int
    ) -> None:
        """Add each tile's update in place; see `AddUpdates`. The kernel cuts tiles finer."""
        native.library().lora_run(
            *(y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0), x.shape[1]),
            *(tiles.data_ptr(), len(tiles)),
            *(self._adapters.ctypes.data, self._parts.ctypes.data, self._parts.shape[1]),
            torch.get_num_threads(),
        )
