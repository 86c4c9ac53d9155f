"""Arrays between host and device in copies that the host does not wait for: index arrays up, many
in one copy; results down, with an event behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

Upload = Callable[[Sequence[np.ndarray], torch.device], list[torch.Tensor]]

_ALIGNMENT = 16  # bytes; what kernels read fastest


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """The arrays as tensors on the device. On the CPU they share the arrays' memory."""
    if device.type == "cpu":
        return [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    host = pack(arrays)
    # pinned memory comes from torch's cache, which reuses it only after the copy is done
    packed = host.pin_memory().to(device, non_blocking=True)
    return unpack(packed, arrays)


class Download:
    """Tensors of one device on their way to the host, behind everything launched so far."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = list(tensors)
        self._arrived: torch.cuda.Event | None = None
        device = tensors[0].device
        if device.type == "cuda":
            self._tensors = [_to_pinned(tensor) for tensor in tensors]
            self._arrived = torch.cuda.current_stream(device).record_event()

    def wait(self) -> list[torch.Tensor]:
        """The tensors on the host, once they are there. On the CPU: the tensors themselves."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def pack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """All arrays in one run of bytes, each aligned. [bytes] uint8"""
    ends = np.cumsum([_padded(array) for array in arrays])
    packed = np.zeros(int(ends[-1]), np.uint8)
    for array, end in zip(arrays, ends, strict=True):
        start = int(end) - _padded(array)
        packed[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).ravel()
    return torch.from_numpy(packed)


def unpack(packed: torch.Tensor, like: Sequence[np.ndarray]) -> list[torch.Tensor]:
    """Views of packed bytes with the arrays' shapes and types."""
    tensors, start = [], 0
    for array in like:
        dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
        part = packed[start : start + array.nbytes]
        tensors.append(part.view(dtype).view(array.shape))
        start += _padded(array)
    return tensors


def _padded(array: np.ndarray) -> int:
    return -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
