"""One small trained delta of each kind: what it is attached to, its domain and its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from transformers import LlamaForCausalLM

from tools.demo.training.attach import BitFit, Bottlenecks, Method, Peft
from tools.demo.training.corpus import TOPICS
from tools.demo.training.loop import Recipe
from tools.demo.training.members import BASE, LINEARS, load_base

WINDOW = 256  # tokens of a training row


@dataclass(frozen=True)
class Tuned:
    """One delta. `parent` is the member of the family it stands on."""

    name: str
    kind: str
    domain: str
    method: Method
    recipe: Recipe
    parent: str = BASE


def _lora(rank: int, targets: tuple[str, ...], **options: Any) -> Peft:
    return Peft(
        lambda: LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            target_modules=sorted(targets),
            **{"lora_alpha": 2 * rank, **options},
        )
    )


def _recipe(rate: float, seed: int, steps: int = 40) -> Recipe:
    return Recipe(steps, rate, rows=4, weight_decay=0.0, seed=seed)


_QV = ("q_proj", "v_proj")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")

DELTAS: tuple[Tuned, ...] = (
    Tuned(
        "rslora",
        "rsLoRA, rank 8, attention",
        "interface",
        _lora(8, _ATTENTION, lora_alpha=8, use_rslora=True),
        _recipe(4e-3, 11),
    ),
    Tuned(
        "dora",
        "DoRA, rank 4, all seven linears",
        "concurrency",
        _lora(4, LINEARS, use_dora=True),
        _recipe(5e-3, 12),
    ),
    Tuned(
        "ia3",
        "IA3: keys, values, down_proj's input",
        TOPICS,
        Peft(
            lambda: IA3Config(
                task_type="CAUSAL_LM",
                target_modules=["k_proj", "v_proj", "down_proj"],
                feedforward_modules=["down_proj"],
            )
        ),
        _recipe(4e-2, 13),
    ),
    Tuned("bitfit", "BitFit: a bias on every linear", "network", BitFit(), _recipe(2e-2, 14)),
    Tuned(
        "ln",
        "all norms",
        "interface",
        Peft(lambda: LNTuningConfig(task_type="CAUSAL_LM", target_modules=list(_NORMS))),
        _recipe(3e-2, 15),
    ),
    Tuned(
        "prefix",
        "prefix tuning, 16 tokens",
        TOPICS,
        Peft(lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16)),
        _recipe(5e-2, 16),
    ),
    Tuned(
        "prompt",
        "prompt tuning, 16 tokens",
        TOPICS,
        Peft(lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=16)),
        _recipe(2e-2, 17),
    ),
    Tuned(
        "p-tuning",
        "p-tuning, 16 tokens",
        TOPICS,
        Peft(
            lambda: PromptEncoderConfig(
                task_type="CAUSAL_LM", num_virtual_tokens=16, encoder_hidden_size=128
            )
        ),
        _recipe(5e-3, 18),
    ),
    Tuned(
        "houlsby",
        "bottleneck (Houlsby), 16 wide",
        "network",
        Bottlenecks("network", "swish", 16, behind_attention=True, reads_stream=False),
        _recipe(5e-3, 19),
    ),
    Tuned(
        "pfeiffer",
        "bottleneck (Pfeiffer), 32 wide",
        "concurrency",
        Bottlenecks("concurrency", "relu", 8, behind_attention=False, reads_stream=True),
        _recipe(5e-3, 20),
    ),
    Tuned(
        "lora-saved",
        "LoRA, rank 4, with all norms and the last o_proj saved whole",
        "network",
        _lora(4, _QV, modules_to_save=["norm", "layers.5.self_attn.o_proj"]),
        _recipe(5e-3, 21),
    ),
    Tuned(
        "lora-on-full",
        "LoRA, rank 4, on the full fine-tune",
        TOPICS,
        _lora(4, ("v_proj", "o_proj", "down_proj")),
        _recipe(6e-3, 22, steps=60),
        parent="full",
    ),
    Tuned(
        "lora-on-lora",
        "LoRA, rank 4, on another LoRA",
        "concurrency",
        _lora(4, ("k_proj", "v_proj", "down_proj")),
        _recipe(5e-3, 23),
        parent="lora-a",
    ),
)


def load_parent(out: Path, parent: str) -> LlamaForCausalLM:
    """The model a delta is trained on, in fp32; an adapter is merged, which computes the same."""
    if (out / parent / "config.json").exists():
        model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(
            out / parent, dtype=torch.float32
        )
        return model
    merged: LlamaForCausalLM = PeftModel.from_pretrained(
        load_base(out), out / parent
    ).merge_and_unload()
    return merged
