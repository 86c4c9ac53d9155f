"""How long a span's weights take from tier to tier: disk → page cache → ready to multiply.

Needs no rights: the system is asked to drop the files' pages (`posix_fadvise`), and `mincore`
says whether it did. Pages that another process has mapped stay; then the disk was not measured.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from blockllm.chain import Span
from blockllm.core import Tensor
from blockllm.engine.layers.block import BlockExecutor
from blockllm.engine.weights.loader import PackStore, TensorLoader

_PIECE = 1 << 20  # bytes read at a time
_MOSTLY = 0.02  # share of pages that may stay in memory for a read to count as one from disk


class ReadSeconds(NamedTuple):
    """Medians; `disk` is None where the files' pages could not be dropped."""

    disk: float | None
    page_cache: float


def tensors_of(span: Span) -> list[Tensor]:
    """The distinct tensors of a span."""
    layers = (layer for block in span.blocks for layer in block.layers)
    return list({t.hash: t for layer in layers for t in layer.tensors.values()}.values())


def time_reading(store: PackStore, span: Span, tries: int) -> ReadSeconds:
    """Read the span's tensors from disk and again from the page cache.

    Nothing of this process may have mapped them.
    """
    tensors = tensors_of(span)
    packs = {store.pack_path(tensor.pack) for tensor in tensors}
    cold, warm = list[float](), list[float]()
    for _ in range(tries):
        if all(drop_pages(pack) for pack in packs):
            cold.append(_seconds(lambda: _read(store, tensors)))
        else:
            _read(store, tensors)
        warm.append(_seconds(lambda: _read(store, tensors)))
    return ReadSeconds(median(cold) if cold else None, median(warm))


def time_binding(
    store: PackStore, span: Span, device: torch.device, dtype: torch.dtype, tries: int
) -> float:
    """Bring the span's weights from the page cache into the form the executor multiplies by."""
    _read(store, tensors_of(span))

    def bind() -> None:
        loader = TensorLoader(store, device, dtype)
        for block in span.blocks:
            BlockExecutor(block, loader)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return median(_seconds(bind) for _ in range(tries))


def drop_pages(path: Path) -> bool:
    """Ask the system to forget a file's pages; whether it did."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return resident_share(file.fileno()) <= _MOSTLY


def resident_share(descriptor: int) -> float:
    """Share of a file's pages that are in memory; 1 where the system does not tell."""
    size = os.fstat(descriptor).st_size
    if not size:
        return 1.0
    with mmap.mmap(descriptor, size, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        libc = ctypes.CDLL(None, use_errno=True)
        address = ctypes.c_void_p(view.ctypes.data)
        failed = libc.mincore(address, ctypes.c_size_t(size), ctypes.c_void_p(flags.ctypes.data))
        del view  # the mapping cannot be closed while an array lies on it
    return 1.0 if failed else float((flags & 1).mean())


def _read(store: PackStore, tensors: Iterable[Tensor]) -> None:
    buffer = memoryview(bytearray(_PIECE))
    for tensor in tensors:
        with store.pack_path(tensor.pack).open("rb", buffering=0) as file:
            file.seek(tensor.offset)
            left = tensor.nbytes
            while left and (count := file.readinto(buffer[: min(left, _PIECE)])):
                left -= count


def _seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
