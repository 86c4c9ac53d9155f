"""Index arrays from the host to the device: many in one copy that the host does not wait for."""

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
