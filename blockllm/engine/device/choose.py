"""Which device and which compute dtype: probed, not read from the checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import torch

from blockllm.core import Chain
from blockllm.engine.kernels.choice import ALL_CORES, Kernels
from blockllm.engine.kernels.matmul import Matmul, make_matmul, packs
from blockllm.errors import ConfigError

_NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA if present, else the CPU. Raises ConfigError for an absent device."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device: CUDA was asked for, but torch finds no CUDA device")
    return device


def choose_dtype(
    name: str, chains: Iterable[Chain], device: torch.device, kernels: Kernels = ALL_CORES
) -> torch.dtype:
    """`auto` computes in fp32 unless all weights are 16-bit and the device is at least as fast in
    bf16, so that an fp32 checkpoint is never rounded unasked."""
    if name != "auto":
        return _NAMES[name]
    dtypes = {
        tensor.dtype
        for chain in chains
        for entry in chain.entries
        for layer in entry.block.layers
        for tensor in layer.tensors.values()
    }
    if "F32" in dtypes:
        return torch.float32
    if device.type == "cuda":
        return torch.float16 if dtypes == {"F16"} else torch.bfloat16
    return torch.bfloat16 if bfloat16_pays(device, kernels) else torch.float32


def bfloat16_pays(device: torch.device, kernels: Kernels = ALL_CORES, size: int = 1024) -> bool:
    """Measure (about 50 ms): is a linear of bf16 weights, at 1 and at 16 rows, no slower in bf16
    than in fp32?"""
    narrow, wide = torch.bfloat16, torch.float32
    weight = torch.zeros(size, size, device=device, dtype=narrow)
    kept = weight if packs(device, wide, kernels) else weight.float()
    exact = make_matmul([kept], None, None, wide, kernels)
    rounding = make_matmul([weight], None, None, narrow, kernels)
    for rows in (1, 16):
        x = torch.zeros(rows, size, device=device)
        if _seconds(rounding, x.to(narrow)) > _seconds(exact, x):
            return False
    return True


def _seconds(matmul: Matmul, x: torch.Tensor, tries: int = 7) -> float:
    best = float("inf")
    for _ in range(tries):
        start = time.perf_counter()
        matmul(x)
        best = min(best, time.perf_counter() - start)
    return best


def usable_bytes(device: torch.device) -> int:
    """Memory the engine takes when it is not told: a share of what is free now, container limits
    respected. Main memory is shared with others, a GPU's usually is not."""
    if device.type == "cuda":
        return int(0.9 * torch.cuda.mem_get_info(device)[0])
    return _available_main_memory() // 2


def _available_main_memory() -> int:
    available = _meminfo("MemAvailable")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return min(available, limit - used)
    except (OSError, ValueError):  # no limit, or no cgroup
        return available


def _meminfo(field: str) -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 4 << 30  # not Linux: a careful guess; `--memory` overrides it
