"""Makers of tiny real checkpoints and adapters, shared by the tests of several rooms."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

SHAPE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"


def make_checkpoint(
    path: Path,
    family: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    copy_layers_from: Path | None = None,
    copied_layers: tuple[int, ...] = (),
    tokenizer: bool = False,
    max_shard_size: str = "5GB",
    **config: Any,
) -> Path:
    """A random model of `family`, saved by transformers; every tensor is random, norms and biases
    too. Layers `copied_layers`, the embedding and the head come from `copy_layers_from` if given.
    """
    model = make_model(family, seed=seed, dtype=dtype, **config)
    if copy_layers_from is not None:
        _copy_layers(model, copy_layers_from, copied_layers)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    if tokenizer:
        make_tokenizer(path)
    return path


def make_model(
    family: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: Any
) -> Any:
    """A random transformers model of `family`; `config` overrides the tiny default shape."""
    import transformers

    model_class = getattr(transformers, ARCHITECTURES[family])
    values = {**SHAPE, "head_dim": None, "bos_token_id": 1, "eos_token_id": 2, **config}
    if values["head_dim"] is None:
        values["head_dim"] = values["hidden_size"] // values["num_attention_heads"]
    generator = torch.Generator().manual_seed(seed)
    model = model_class(model_class.config_class(**values)).eval().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            center = 1.0 if "norm" in name else 0.0
            parameter.copy_((center + 0.15 * noise).to(dtype))
    return model


def _copy_layers(model: Any, source: Path, layers: tuple[int, ...]) -> None:
    from safetensors.torch import load_file

    prefixes = tuple(f"model.layers.{index}." for index in layers)
    prefixes += ("model.embed_tokens.", "model.norm.", "lm_head.")
    state = model.state_dict()
    for file in sorted(source.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            if name.startswith(prefixes):
                state[name].copy_(tensor)


def make_tokenizer(path: Path, vocab_size: int = 96, template: str | None = TEMPLATE) -> None:
    """A byte-level BPE tokenizer with the files that the zoo keeps as assets."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<pad>", "<s>", "</s>", *alphabet][:vocab_size]
    tokens = {token: index for index, token in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[], unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    settings |= {"eos_token": "</s>", "pad_token": "<pad>"}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    if template is not None:
        (path / "chat_template.jinja").write_text(template)


def make_lora(base: Path, path: Path, *, seed: int = 1, **config: Any) -> Path:
    """A PEFT LoRA adapter on the checkpoint `base`; every trained tensor is random and not zero.

    `config` goes to `peft.LoraConfig`; `target_modules` is q_proj and v_proj unless given.
    """
    import peft
    import transformers

    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    values |= {"task_type": "CAUSAL_LM", **config}
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about tied weights; tests cover what it does
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model = peft.get_peft_model(model, peft.LoraConfig(**values))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    noise = torch.randn(parameter.shape, generator=generator)
                    center = 1.0 if "norm" in name else 0.0
                    parameter.copy_(center + 0.1 * noise)
        model.save_pretrained(path)
    return path
