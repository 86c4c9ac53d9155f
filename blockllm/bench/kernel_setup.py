"""At which sizes kernels are measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from blockllm.core import Chain, HeadFunction, LayerFunction
from blockllm.engine.kernels.choice import ALL_CORES, Kernels


class Setup(NamedTuple):
    """Sizes of one model, the row counts to measure, and where."""

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    kernels: Kernels = ALL_CORES

    def random(self, seed: int, *size: int) -> torch.Tensor:
        """Normal numbers on the device."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(size, generator=generator).to(self.device, self.dtype)

    @property
    def width(self) -> int:
        """Bytes of one number."""
        return self.dtype.itemsize

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Outputs and inputs of the linears as the engine fuses them."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        return {
            "qkv": (qkv, self.hidden),
            "o": (self.hidden, self.heads * self.head_dim),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
            "head": (self.vocab, self.hidden),
        }


def setup_of(chain: Chain, **more: Any) -> Setup:
    """The sizes of a model of a zoo."""
    functions = [layer.function for entry in chain.entries for layer in entry.block.layers]
    layer = next(f for f in functions if isinstance(f, LayerFunction))
    head = next(f for f in functions if isinstance(f, HeadFunction))
    return Setup(
        hidden=layer.hidden_size,
        intermediate=layer.intermediate_size,
        heads=layer.num_heads,
        kv_heads=layer.num_kv_heads,
        head_dim=layer.head_dim,
        vocab=head.vocab_size,
        **more,
    )


def default_setup(**more: Any) -> Setup:
    """Sizes of a model of a quarter billion parameters."""
    return Setup(1024, 2816, 16, 8, 64, 32000, **more)


def tolerance(s: Setup, terms: int) -> float:
    """Rounding of sums of so many products of normal numbers: their values reach about six times
    the root of `terms`, and each of several roundings is at most `eps` of that."""
    return float(16 * torch.finfo(s.dtype).eps * 6 * terms**0.5)
