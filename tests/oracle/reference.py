"""The reference: transformers (and peft) in fp32, one prompt at a time, adapters never merged.

What peft does not know is plain PyTorch: biases are set, bottleneck adapters are hooks.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file


class Expected(NamedTuple):
    """What the reference generates greedily, and the log-probabilities it saw on the way."""

    tokens: list[int]
    logprobs: torch.Tensor  # [tokens, vocab]


def load(path: Path, *adapters: Path) -> Any:
    """A fresh fp32 model under its adapters. Fresh matters: dynamic rope keeps state."""
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for adapter in adapters:
            model = _add(model, adapter)
    return model.eval()


def _add(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    config = json.loads((adapter / "adapter_config.json").read_text())
    if "peft_type" not in config:
        _hook_bottlenecks(model, adapter, config)
    elif config["peft_type"] == "BITFIT":
        for name, bias in load_file(adapter / "adapter_model.safetensors").items():
            model.get_submodule(name.removesuffix(".bias")).bias = torch.nn.Parameter(bias)
    elif isinstance(model, PeftModel):
        model.load_adapter(adapter, adapter.name)
        model.base_model.set_adapter(["default", adapter.name])
    else:
        model = PeftModel.from_pretrained(model, adapter)
    return model


def _hook_bottlenecks(model: Any, adapter: Path, document: dict[str, Any]) -> None:
    """As the library `adapters` computes it: the adapter sees what attention or MLP gives, or that
    plus the residual stream, and adds to what they give; the stream is added behind it."""
    tensors, config = load_file(adapter / "adapter.safetensors"), document["config"]
    for index, layer in enumerate(model.model.layers):
        places = (
            ("attention_adapters", layer.input_layernorm, layer.self_attn),
            ("output_adapters", layer.post_attention_layernorm, layer.mlp),
        )
        for place, norm, module in places:
            prefix = f"model.layers.{index}.{place}.adapters.{document['name']}."
            own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            if own:
                _hook_bottleneck(norm, module, own, config)


def _hook_bottleneck(
    norm: Any, module: Any, own: dict[str, torch.Tensor], config: dict[str, Any]
) -> None:
    from transformers.activations import get_activation

    stream: list[torch.Tensor] = []
    activation = get_activation(config["non_linearity"])

    def keep(_: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        stream[:] = arguments[:1]

    def add(_: Any, __: Any, output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        z = y + stream[0] if config["original_ln_before"] else y
        down = z @ own["adapter_down.0.weight"].T + own["adapter_down.0.bias"]
        up = activation(down) @ own["adapter_up.weight"].T + own["adapter_up.bias"]
        changed = y + config["scaling"] * up
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    norm.register_forward_pre_hook(keep)
    module.register_forward_hook(add)


def rescale(model: Any, adapter: str, factor: float) -> None:
    """Scale what a LoRA adapter adds."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer) and adapter in module.scaling:
            module.scaling[adapter] *= factor


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
            # peft puts virtual tokens before whatever it is given: they are in the cache by now
            model = getattr(model, "base_model", model) if _has_virtual(model) else model
            out = run_behind(cache_of(out), model, step)
    return Expected(tokens, torch.stack(rows))


@torch.inference_mode()
def perplexity(model: Any, ids: Sequence[int], window: int, first: int) -> float:
    """Over a text in windows that each begin with the token `first`."""
    total = 0.0
    for start in range(0, len(ids), window):
        part = torch.tensor([[first, *ids[start : start + window]]])
        total += float(model(input_ids=part, labels=part).loss) * (part.shape[1] - 1)
    return math.exp(total / len(ids))


def run_behind(cache: Any, model: Any, ids: torch.Tensor) -> Any:
    """The model's output for these tokens behind those in the cache."""
    import inspect

    from transformers import LlamaForCausalLM

    # newer releases call it `cache`, in all models at once
    names = inspect.signature(LlamaForCausalLM.forward).parameters
    name = "cache" if "cache" in names else "past_key_values"
    return model(input_ids=ids, use_cache=True, **{name: cache})


def cache_of(output: Any) -> Any:
    """The keys and values that an output leaves behind."""
    return output.cache if hasattr(output, "cache") else output.past_key_values


def _has_virtual(model: Any) -> bool:
    return getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False)
