"""Makers of tiny real checkpoints and adapters, shared by the tests of several rooms."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
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


def make_lora(
    base: Path, path: Path, *, seed: int = 1, recorded: Path | None = None, **config: Any
) -> Path:
    """A PEFT LoRA adapter on the checkpoint `base`.

    `config` goes to `peft.LoraConfig`; `target_modules` is q_proj and v_proj unless given.
    """
    import peft

    values: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    values |= {"task_type": "CAUSAL_LM", **config}
    return make_adapter(base, path, peft.LoraConfig(**values), seed=seed, recorded=recorded)


def resize_vocabulary(base: Path, path: Path, vocab_size: int) -> Path:
    """The checkpoint `base` with more or fewer tokens."""
    import transformers

    torch.manual_seed(vocab_size)  # transformers draws the new rows
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(vocab_size)
    model.save_pretrained(path)
    return path


def make_adapter(
    base: Path, path: Path, config: Any, *, seed: int = 1, recorded: Path | None = None
) -> Path:
    """A PEFT adapter of any kind on the checkpoint `base`; `config` is peft's. Every trained tensor
    is random: gains, magnitudes and norms around what they start from, others around zero.
    `recorded` is the base that the adapter names, if that is another one."""
    import peft
    import transformers

    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # for what peft draws and does not train
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft warns about tied weights; tests cover what it does
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model.name_or_path = str(recorded or base)
        model = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if not parameter.requires_grad:
                    continue
                noise = torch.randn(parameter.shape, generator=generator)
                if "ia3_l" in name or "norm" in name:
                    parameter.copy_(1.0 + 0.2 * noise)
                elif "magnitude" in name:
                    parameter.mul_(1.0 + 0.2 * noise)
                elif "unilora_theta" in name:  # times small scales
                    parameter.copy_(noise)
                elif "prompt_encoder" in name:
                    parameter.copy_(0.5 * noise)
                else:
                    parameter.copy_(0.1 * noise)
        model.save_pretrained(path)
    return path


def make_bitfit(base: Path, path: Path, modules: Sequence[str], *, seed: int = 1) -> Path:
    """Trained biases of linears whose names end so, whether or not the base has some there."""
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    weights = load_file(base / "model.safetensors")
    biases = {
        name.replace(".weight", ".bias"): 0.1 * torch.randn(len(weight), generator=generator)
        for name, weight in weights.items()
        if name.removesuffix(".weight").endswith(tuple(modules))
    }
    path.mkdir(parents=True, exist_ok=True)
    save_file(biases, path / "adapter_model.safetensors")
    config = {"peft_type": "BITFIT", "base_model_name_or_path": str(base)}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


# the options of AdapterHub's two bottleneck configurations
HOULSBY = {
    "mh_adapter": True, "output_adapter": True, "original_ln_before": False,
    "original_ln_after": True, "residual_before_ln": True, "non_linearity": "swish",
}  # fmt: skip
PFEIFFER = {
    "mh_adapter": False, "output_adapter": True, "original_ln_before": True,
    "original_ln_after": True, "residual_before_ln": True, "non_linearity": "relu",
}  # fmt: skip


def make_bottleneck(base: Path, path: Path, options: dict[str, Any], *, seed: int = 1) -> Path:
    """A bottleneck adapter as AdapterHub's library saves it; every tensor is random."""
    from safetensors.torch import save_file

    shape = json.loads((base / "config.json").read_text())
    config: dict[str, Any] = {
        "adapter_residual_before_ln": False, "architecture": None, "cross_adapter": False,
        "dropout": 0.0, "init_weights": "bert", "inv_adapter": None, "is_parallel": False,
        "leave_out": [], "ln_after": False, "ln_before": False, "phm_dim": 4, "phm_layer": False,
        "reduction_factor": 4, "scaling": 1.0, "use_gating": False, **options,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    hidden, tensors = shape["hidden_size"], {}
    places = {"mh_adapter": "attention_adapters", "output_adapter": "output_adapters"}
    for layer in range(shape["num_hidden_layers"]):
        factor = config["reduction_factor"]
        if isinstance(factor, dict):
            factor = factor.get(str(layer), factor.get("default"))
        size = max(1, int(hidden // factor))
        for place in (name for option, name in places.items() if config[option]):
            prefix = f"model.layers.{layer}.{place}.adapters.tuned"
            sizes = {
                "adapter_down.0.weight": (size, hidden), "adapter_down.0.bias": (size,),
                "adapter_up.weight": (hidden, size), "adapter_up.bias": (hidden,),
            }  # fmt: skip
            for part, size_of in sizes.items() if layer not in config["leave_out"] else ():
                noise = torch.randn(size_of, generator=generator)
                tensors[f"{prefix}.{part}"] = 0.3 * noise
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "adapter.safetensors")
    document = {
        "config": config, "hidden_size": hidden, "model_class": "LlamaForCausalLM",
        "model_name": str(base), "model_type": shape["model_type"], "name": "tuned",
        "version": "adapters.1.3.0",
    }  # fmt: skip
    (path / "adapter_config.json").write_text(json.dumps(document, indent=2, sort_keys=True))
    return path
