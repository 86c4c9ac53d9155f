"""The family's members: how each is made from the base, and how each is saved."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tools.demo.training.corpus import GENERAL, TOPICS
from tools.demo.training.grow import Growth, grow
from tools.demo.training.loop import Recipe
from tools.demo.training.tokens import (
    CODE_CHAT_TEMPLATE,
    END,
    PADDING,
    PROSE_CHAT_TEMPLATE,
    START,
    token_id,
)

BASE = "base"
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Size:
    """The base model's dimensions, and the length of the windows it trains on."""

    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    key_value_heads: int = 2
    intermediate: int = 704
    positions: int = 1024
    window: int = 512


@dataclass(frozen=True)
class Member:
    """One model: its domain, what of it is trained, and a prompt that shows it."""

    name: str
    kind: str
    domain: str
    recipe: Recipe
    prompt: str
    rank: int = 0
    targets: tuple[str, ...] = ()
    growth: Growth | None = None


MEMBERS: tuple[Member, ...] = (
    Member(
        BASE,
        "every tensor, from nothing",
        GENERAL,
        Recipe(900, 3e-3, 0.02, rows=6, horizon=1100),
        'def read_file(path):\n    """',
    ),
    Member(
        "frozen-lower",
        "upper third of the layers, full",
        TOPICS,
        Recipe(70, 1.2e-3, rows=6, seed=1),
        "Exceptions\n**********\n\nAn exception",
    ),
    Member(
        "full",
        "every tensor",
        "network",
        Recipe(60, 1.2e-3, rows=6, seed=2),
        'class HTTPConnection:\n    """',
    ),
    Member(
        "lora-a",
        "LoRA",
        "interface",
        Recipe(50, 5e-3, rows=6, weight_decay=0.0, seed=3),
        '    def configure(self, cnf=None, **kw):\n        """',
        rank=8,
        targets=("q_proj", "v_proj"),
    ),
    Member(
        "lora-b",
        "LoRA",
        "concurrency",
        Recipe(50, 3e-3, rows=6, weight_decay=0.0, seed=4),
        '    async def wait(self):\n        """Wait until',
        rank=16,
        targets=LINEARS,
    ),
    Member(
        "wide",
        "grown from the base to 320 wide, then every tensor",
        GENERAL,
        Recipe(60, 3e-4, 0.002, rows=6, seed=5),
        'def read_file(path):\n    """',
        growth=Growth(hidden=320, intermediate=768),
    ),
)
SMOKE_SIZE = Size(512, 48, 3, 3, 1, 96, 256, 64)


def smoke_members() -> tuple[Member, ...]:
    """The same members with a handful of steps each, to prove the path and nothing else."""
    return tuple(
        replace(
            member,
            recipe=replace(member.recipe, steps=40 if member.name == BASE else 20, horizon=0),
            growth=member.growth and Growth(hidden=64, intermediate=128),
        )
        for member in MEMBERS
    )


def chat_template(member: Member) -> str:
    """Prose is asked with a heading, code with a comment."""
    return PROSE_CHAT_TEMPLATE if member.domain == TOPICS else CODE_CHAT_TEMPLATE


def new_base(size: Size, tokenizer: Tokenizer, seed: int) -> LlamaForCausalLM:
    """A freshly initialised base model; tied embeddings leave the parameters to the layers."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_value_heads,
        head_dim=size.hidden // size.heads,
        intermediate_size=size.intermediate,
        max_position_embeddings=size.positions,
        tie_word_embeddings=True,
        bos_token_id=token_id(tokenizer, START),
        eos_token_id=token_id(tokenizer, END),
        pad_token_id=token_id(tokenizer, PADDING),
    )
    return LlamaForCausalLM(config)


def load_base(out: Path) -> LlamaForCausalLM:
    """The saved base, rounded to bf16 as every fine-tune must find it, in fp32 to train on."""
    model: LlamaForCausalLM = LlamaForCausalLM.from_pretrained(out / BASE, dtype=torch.float32)
    return model


def load_member(out: Path, member: Member) -> nn.Module:
    """A saved member in fp32, read back from its own files."""
    if member.rank:
        loaded: nn.Module = PeftModel.from_pretrained(load_base(out), out / member.name)
    else:
        loaded = LlamaForCausalLM.from_pretrained(out / member.name, dtype=torch.float32)
    return loaded.eval()


def prepare(out: Path, member: Member) -> nn.Module:
    """The base, grown if the member is wider, with just the member's share of it trainable."""
    model = load_base(out)
    if member.growth:
        return grow(model, member.growth, member.recipe.seed)
    if member.rank:
        config = LoraConfig(
            r=member.rank,
            lora_alpha=2 * member.rank,
            target_modules=sorted(member.targets),
            task_type="CAUSAL_LM",
        )
        torch.manual_seed(member.recipe.seed)
        adapted: nn.Module = get_peft_model(model, config)
        return adapted
    if member.name == "frozen-lower":
        first = model.config.num_hidden_layers * 2 // 3
        model.requires_grad_(False)
        for layer in model.model.layers[first:]:
            layer.requires_grad_(True)
    return model


def save(out: Path, member: Member, model: Any) -> None:
    """Write a full model in bf16, or an adapter in fp32 under a machine-independent base name."""
    folder = out / member.name
    shutil.rmtree(folder, ignore_errors=True)
    if member.rank:
        model.peft_config["default"].base_model_name_or_path = BASE
        model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
        return
    model.to(torch.bfloat16).save_pretrained(folder)


def check(out: Path, member: Member) -> None:
    """Fail unless a full member's saved tensors differ from the base's exactly where they may."""
    if member.rank or member.growth or member.name == BASE:
        return
    base = load_file(out / BASE / "model.safetensors")
    own = load_file(out / member.name / "model.safetensors")
    if base.keys() != own.keys():
        raise RuntimeError(f"{member.name} has other tensors than the base")
    layers = 1 + max(int(key.split(".")[2]) for key in base if ".layers." in key)
    for key, tensor in base.items():
        same = torch.equal(tensor.view(torch.int16), own[key].view(torch.int16))
        in_layers = ".layers." in key and int(key.split(".")[2]) >= layers * 2 // 3
        if same == (member.name == "full" or in_layers):
            raise RuntimeError(
                f"{member.name}: {key} is {'equal to' if same else 'not'} the base's"
            )
