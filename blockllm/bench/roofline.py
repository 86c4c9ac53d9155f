"""The limits of the machine, measured in the run they are compared in: how fast weights can be
read, and how many multiplications it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

_TRIES = 7
_MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the matrices of the compute limit


class Limits(msgspec.Struct, frozen=True):
    """Limits of one device; `how` says what was run to find each."""

    device: str
    threads: int
    dtype: str
    cache_bytes: int  # last-level cache: data beyond this comes from memory
    bytes_per_second: float
    flops_per_second: float
    how: str

    def seconds(self, num_bytes: float, flops: float) -> float:
        """The least time for work that moves so many bytes and does so many operations."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second)


def higher(first: Limits, second: Limits) -> Limits:
    """The higher rates of two measurements of one device: what disturbs only lowers them."""
    return msgspec.structs.replace(
        first,
        bytes_per_second=max(first.bytes_per_second, second.bytes_per_second),
        flops_per_second=max(first.flops_per_second, second.flops_per_second),
    )


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Measure for about two seconds."""
    cache = cache_bytes(device)
    readers = _readers(device, cache)
    rates = {name: size / best_seconds(run, device) for name, (size, run) in readers.items()}
    fastest = max(rates, key=lambda name: rates[name])
    side = _MATRIX[device.type]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds = best_seconds(lambda: torch.mm(left, right), device)
    return Limits(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        threads=torch.get_num_threads(),
        dtype=str(dtype).removeprefix("torch."),
        cache_bytes=cache,
        bytes_per_second=rates[fastest],
        flops_per_second=2 * side**3 / seconds,
        how=f"{fastest}; torch.mm of {side} x {side}",
    )


def _readers(device: torch.device, cache: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Ways to stream memory, with the bytes that each moves."""
    count = min(max(8 * cache, 1 << 28), 1 << 30) // 4
    buffer = torch.ones(count, device=device)
    if device.type == "cuda":
        target = torch.empty_like(buffer)
        return {"copy": (2 * buffer.nbytes, lambda: target.copy_(buffer))}
    half = buffer.view(2, -1)
    table, vector = buffer.view(-1, 1024), torch.ones(1024)
    return {
        "sum of a buffer": (buffer.nbytes, buffer.sum),
        "dot product of two halves": (buffer.nbytes, lambda: torch.dot(half[0], half[1])),
        "matrix-vector product": (buffer.nbytes, lambda: torch.mv(table, vector)),
    }


def cache_bytes(device: torch.device) -> int:
    """Size of the last-level cache; a generous guess where it is not told."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [1 << 25]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(text[-1], 0))
    return max(sizes)


def best_seconds(run: Callable[[], object], device: torch.device) -> float:
    """The fastest of some calls: a limit is what nothing disturbed."""
    return min(timed(run, device) for _ in range(_TRIES))


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    settle(device)
    start = time.perf_counter()
    run()
    settle(device)
    return time.perf_counter() - start


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
