"""The reference: transformers (and peft) in fp32, one prompt at a time, adapters never merged."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Expected(NamedTuple):
    """What the reference generates greedily, and the log-probabilities it saw on the way."""

    tokens: list[int]
    logprobs: torch.Tensor  # [tokens, vocab]


def load(path: Path, adapter: Path | None = None) -> Any:
    """A fresh fp32 model. Fresh matters: dynamic rope keeps state between calls."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
    return model.eval()


@torch.inference_mode()
def generate(model: Any, prompt: Sequence[int], max_tokens: int) -> Expected:
    """Greedy decoding that ignores the end of text."""
    ids = torch.tensor([list(prompt)])
    tokens: list[int] = []
    rows = []
    out = model(input_ids=ids, use_cache=True)
    for _ in range(max_tokens):
        logits = out.logits[0, -1].float()
        rows.append(torch.log_softmax(logits, -1))
        tokens.append(int(logits.argmax()))
        if len(tokens) < max_tokens:
            step = torch.tensor([tokens[-1:]])
            out = model(input_ids=step, past_key_values=out.past_key_values, use_cache=True)
    return Expected(tokens, torch.stack(rows))
