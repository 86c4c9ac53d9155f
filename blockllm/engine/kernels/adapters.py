"""What the adapters of one linear add to its output, by the device's kernel.

CPU: our own (`lora.cpp`), over packed copies. GPU: Triton. Elsewhere the plain twin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from blockllm.engine.kernels.adapter_pool import Update, make_pool, segmented_lora_plain
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.kernels.cpu import native

# (y [rows, out], changed in place; x [rows, in]; tiles [n, 3] int32 of first row, end, adapter;
# most rows of a tile; what computes)
AddUpdates = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, Kernels], None]

# as in lora.cpp
_GROUP, _CHUNK = 4, 16  # ranks that take turns in A, inputs of each turn
_WIDE = 64  # outputs whose B lies together


def make_adapters(
    adapters: Sequence[Mapping[str, Update]],
    columns: Mapping[str, slice],
    kernels: Kernels = ALL_CORES,
) -> AddUpdates | None:
    """Adds each tile's update; None if no adapter changes this linear. Keys of each adapter are
    names of parts, `columns` says where a part lies in y; `kernels`: those to make them for."""
    sample = next((u.a for updates in adapters for u in updates.values()), None)
    if sample is None:
        return None
    if kernels.native(sample):
        return PackedAdapters(adapters, columns)
    pool = make_pool(adapters, columns)
    assert pool is not None

    def add(
        y: torch.Tensor, x: torch.Tensor, tiles: torch.Tensor, block_rows: int, kernels: Kernels
    ) -> None:
        if kernels.triton(y):
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


def in_turns(a: torch.Tensor) -> torch.Tensor:
    """[ranks, in] → [ranks / 4, in / 16, 4, 16], zeros behind the last rank and input."""
    ranks, inputs = a.shape
    padded = F.pad(a, (0, -inputs % _CHUNK, 0, -ranks % _GROUP))
    return padded.view(-1, _GROUP, padded.shape[1] // _CHUNK, _CHUNK).transpose(1, 2).contiguous()


class PackedAdapters:
    """Packed copies of every adapter's A and B, and the tables of pointers the kernel walks."""

    def __init__(
        self, adapters: Sequence[Mapping[str, Update]], columns: Mapping[str, slice]
    ) -> None:
        """See `make_adapters`."""
        self._kept: list[torch.Tensor] = []  # what the tables point into
        models = np.zeros((len(adapters), 2), np.int64)  # a, rank
        # by part: b, bias, first column, columns, first rank, rank
        parts = np.zeros((len(adapters), len(columns), 6), np.int64)
        parts[..., 2] = [part.start for part in columns.values()]
        parts[..., 3] = [part.stop - part.start for part in columns.values()]
        for i, updates in enumerate(adapters):
            own = [updates.get(name) for name in columns]
            present = [update for update in own if update is not None]
            if not present:
                continue
            a = torch.cat([update.a for update in present])  # [sum of ranks, in]
            models[i] = self._keep(in_turns(a)), len(a)
            ranks = [0 if update is None else len(update.a) for update in own]
            parts[i, :, 5] = ranks
            parts[i, :, 4] = np.cumsum(ranks) - ranks
            for j, update in enumerate(own):
                if update is not None:
                    parts[i, j, :2] = self._outputs(update)
            inputs = a.shape[1]
        # inputs, adapters, parts, number of parts, most ranks of an adapter
        facts = (inputs, models.ctypes.data, parts.ctypes.data, len(columns), models[:, 1].max())
        self._tables = models, parts, np.array(facts, np.int64)
        self.address = int(self._tables[-1].ctypes.data)  # what native layers take

    def _keep(self, tensor: torch.Tensor) -> int:
        self._kept.append(tensor)
        return tensor.data_ptr()

    def _outputs(self, update: Update) -> tuple[int, int]:
        """Where B and bias lie."""
        b = self._keep(panels(update.b.t() * update.scale, _WIDE))
        if update.bias is None:
            return b, 0
        spare = -len(update.bias) % _WIDE
        return b, self._keep(F.pad(update.bias * update.scale, (0, spare)))

    def __call__(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        tiles: torch.Tensor,
        block_rows: int,
        kernels: Kernels,
    ) -> None:
        """Add each tile's update in place; see `AddUpdates`. The kernel cuts tiles as it likes."""
        native.library().lora_run(
            *(y.data_ptr(), y.stride(0), x.data_ptr(), x.stride(0)),
            *(tiles.data_ptr(), tiles.shape[0], self.address, kernels.threads),
        )
