"""Whether the Triton kernels can be used; they are imported when a CUDA tensor first asks."""

from __future__ import annotations

import functools
import logging

import torch

from blockllm.engine.kernels import plain

LOG = logging.getLogger(__name__)


def usable(x: torch.Tensor) -> bool:
    """Whether the Triton kernels take this tensor: on a GPU where they compile and run."""
    return x.is_cuda and _works(x.device)


@functools.cache
def _works(device: torch.device) -> bool:
    """Try one kernel: triton may be missing, or its compiler, or the GPU may be too old."""
    try:
        from blockllm.engine.kernels.triton.activation import silu_multiply

        x = torch.ones(1, 64, device=device)
        torch.testing.assert_close(silu_multiply(x), plain.silu_multiply(x))
    except Exception as error:  # whatever is wrong with a toolchain, plain kernels still serve
        LOG.warning("the GPU kernels cannot be used, plain ones are: %s", error)
        return False
    return True
