"""Which kernels compute, and on how many threads: travels with a batch, so that engines and lanes
of one process may differ."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from blockllm.engine.kernels import gpu
from blockllm.engine.kernels.cpu import native


def usable_cores() -> int:
    """Threads to compute on: OMP_NUM_THREADS, or as many as this process has cores."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1


class Kernels(NamedTuple):
    """`built`: the device's built kernels where they serve, else torch's; `threads`: of built ones
    on the CPU. How many threads torch's own take is torch's setting, for the whole process."""

    threads: int
    built: bool = True

    def native(self, x: torch.Tensor) -> bool:
        """Whether those of the CPU take this tensor."""
        return self.built and native.usable(x)

    def triton(self, x: torch.Tensor) -> bool:
        """Whether those of the GPU take this tensor."""
        return self.built and gpu.usable(x)


ALL_CORES = Kernels(usable_cores())
