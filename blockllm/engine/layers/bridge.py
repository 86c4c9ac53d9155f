"""A bridge between blocks of different hidden sizes: one linear whose weights depend on where in
the models it stands (stitching layers: SN-Net, arXiv 2302.06586, section 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from blockllm.core import BridgeFunction, Layer
from blockllm.engine.kernels.matmul import make_matmul
from blockllm.engine.layers.changes import Targets
from blockllm.engine.layers.segments import Segments
from blockllm.engine.weights.tensors import Loader


class BridgeLayer:
    """y = W(t) x + b(t). The position t is fixed in a chain, so W(t) and b(t) are summed at load
    and a hop pays for one linear."""

    def __init__(self, layer: Layer, load: Loader) -> None:
        assert isinstance(layer.function, BridgeFunction)
        weight, bias = (
            at_position(load.load(layer.tensors[name]), layer.function.position)
            for name in ("weight", "bias")
        )
        self._matmul = make_matmul([weight], bias, None, weight.dtype, load.kernels)

    def attach(self, adapters: Sequence[Targets], load: Loader) -> None:
        """Deltas are made for models, and no model that was trained has a bridge."""
        assert not any(adapters), "a delta changes a bridge"

    def __call__(self, x: torch.Tensor, segments: Segments) -> torch.Tensor:
        """[rows, input_size] → [rows, output_size]"""
        return self._matmul(x, segments.kernels.threads)


def at_position(terms: torch.Tensor, position: float) -> torch.Tensor:
    """The polynomial Σ tᵏ · terms[k] at t = position. [terms, ...] → [...]"""
    powers = torch.tensor([position**k for k in range(len(terms))], device=terms.device)
    summed: torch.Tensor = torch.tensordot(powers.to(terms.dtype), terms, dims=1)
    return summed
