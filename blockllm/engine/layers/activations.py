"""Activation functions by the names that configurations use."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leakyrelu": F.leaky_relu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
