"""A bridge between blocks of different hidden sizes: one linear whose weights depend on where in
the models it stands (stitching layers: SN-Net, arXiv 2302.06586, section 3)."""

from __future__ import annotations

import torch

from blockllm.core import BridgeFunction, Layer
from blockllm.engine.kernels.matmul import make_matmul
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import Loader


class Bridge:
    """y = W(t) x + b(t). The position t is fixed in a chain, so W(t) and b(t) are summed at load
    and a hop pays for one linear."""

    def __init__(self, layer: Layer, function: BridgeFunction, load: Loader) -> None:
        weight, bias = (
            at_position(load.load(layer.tensors[name]), function.position)
            for name in ("weight", "bias")
        )
        self._matmul = make_matmul([weight], bias, None, weight.dtype, load.kernels)

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows, input_size] → [rows, output_size]"""
        return self._matmul(x, segments.kernels.threads)


def at_position(terms: torch.Tensor, position: float) -> torch.Tensor:
    """The polynomial Σ tᵏ · terms[k] at t = position. [terms, ...] → [...]"""
    powers = torch.tensor([position**k for k in range(len(terms))], device=terms.device)
    summed: torch.Tensor = torch.tensordot(powers.to(terms.dtype), terms, dims=1)
    return summed
