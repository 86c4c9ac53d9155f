"""A wider model that starts as the function of a narrower one, so that it need not learn it anew.

New stream dimensions start at zero (nothing writes them) and are read at random; new MLP channels
compute at random and are not read. Growing networks this way: Net2Net (arXiv 1511.05641).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True)
class Growth:
    """The dimensions that become wider; heads, layers and tokenizer stay."""

    hidden: int
    intermediate: int


def grow(narrow: LlamaForCausalLM, growth: Growth, seed: int) -> LlamaForCausalLM:
    """A wider model with the same logits, up to the norm's epsilon."""
    values = narrow.config.to_dict()
    values |= {"hidden_size": growth.hidden, "intermediate_size": growth.intermediate}
    torch.manual_seed(seed)
    wide = LlamaForCausalLM(LlamaConfig(**values))
    sources = dict(narrow.named_parameters())
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            _widen(name, parameter, sources[name])
    return wide


def _widen(name: str, parameter: nn.Parameter, source: torch.Tensor) -> None:
    if parameter.ndim == 1:
        # zeros in the new dimensions make the root mean square smaller
        scale = math.sqrt(len(source) / len(parameter))
        parameter.fill_(float(source.mean()) * scale)
        parameter[: len(source)] = source * scale
        return
    rows, columns = source.shape
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        parameter.zero_()  # writes nothing into new dimensions, reads no new channel
    if "embed" in name:
        parameter[:, columns:] = 0
    parameter[:rows, :columns] = source
