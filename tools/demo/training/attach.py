"""Ways to attach a delta to a model for training, and to save it as its own world does.

PEFT has most kinds. Biases and bottleneck adapters are plain PyTorch here; the latter are saved as
AdapterHub's library `adapters` does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftConfig, PeftType, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers.activations import get_activation


class Method(Protocol):
    """One kind of delta: puts trainable parameters on a model, and writes them to a folder."""

    def attach(self, model: Any, text: torch.Tensor) -> nn.Module:
        """The model with nothing else trainable; `text` is where virtual tokens start from."""

    def save(self, model: Any, folder: Path, base: str) -> None:
        """Write the delta of a model made by `attach`, for a base of this name."""


class LastLogits(nn.Module):
    """A PEFT model whose virtual tokens do not show in its logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        """Logits of the given tokens alone."""
        output = self.inner(input_ids=input_ids, use_cache=use_cache)
        output.logits = output.logits[:, -input_ids.shape[1] :]
        return output


@dataclass(frozen=True)
class Peft:
    """A kind that PEFT knows; `config` makes its configuration, which PEFT then fills in."""

    config: Callable[[], PeftConfig]

    def attach(self, model: Any, text: torch.Tensor) -> nn.Module:
        config = self.config()
        tuned = get_peft_model(model, config)
        if config.peft_type == PeftType.PREFIX_TUNING:
            start = cached(model, text[: config.num_virtual_tokens])
            tuned.prompt_encoder["default"].load_prompt_embeddings(start)
        elif config.peft_type == PeftType.PROMPT_TUNING:
            rows = model.get_input_embeddings()(text[: config.num_virtual_tokens]).detach()
            tuned.prompt_encoder["default"].embedding.weight.data.copy_(rows)
        return LastLogits(tuned)

    def save(self, model: Any, folder: Path, base: str) -> None:
        model.inner.peft_config["default"].base_model_name_or_path = base
        model.inner.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)


@torch.no_grad()
def cached(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Keys and values of a text as a prefix: [tokens, layers · 2 · kv_heads · head_dim]."""
    output = model(input_ids=ids[None], use_cache=True)
    # newer releases of transformers call it `cache`
    cache = output.cache if hasattr(output, "cache") else output.past_key_values
    rows = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in
            (layer.keys, layer.values)]  # fmt: skip
    return torch.cat(rows, dim=1)


@dataclass(frozen=True)
class BitFit:
    """A bias on every linear of the layers; the base has none."""

    def attach(self, model: Any, text: torch.Tensor) -> nn.Module:
        model.requires_grad_(False)
        for module in model.model.layers.modules():
            if isinstance(module, nn.Linear):
                module.bias = nn.Parameter(torch.zeros(module.out_features))
        return model

    def save(self, model: Any, folder: Path, base: str) -> None:
        biases = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        folder.mkdir(parents=True)
        save_file(biases, folder / "adapter_model.safetensors", {"format": "pt"})
        write_config(folder, {"base_model_name_or_path": base, "peft_type": "BITFIT"})


class Bottleneck(nn.Module):
    """up(f(down(z))), by the names that AdapterHub gives the two; nothing at first."""

    def __init__(self, hidden: int, size: int, activation: str) -> None:
        super().__init__()
        self.adapter_down = nn.Sequential(nn.Linear(hidden, size), get_activation(activation))
        self.adapter_up = nn.Linear(size, hidden)
        nn.init.zeros_(self.adapter_up.weight)
        nn.init.zeros_(self.adapter_up.bias)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """What is added to attention's or the MLP's output."""
        result: torch.Tensor = self.adapter_up(self.adapter_down(z))
        return result


@dataclass(frozen=True)
class Bottlenecks:
    """Bottleneck adapters behind the MLP, and behind attention too (Houlsby) or reading the
    residual stream (Pfeiffer)."""

    name: str
    activation: str
    reduction_factor: int
    behind_attention: bool
    reads_stream: bool

    def attach(self, model: Any, text: torch.Tensor) -> nn.Module:
        model.requires_grad_(False)
        hidden = model.config.hidden_size
        for layer in model.model.layers:
            places = [("output_adapters", layer.post_attention_layernorm, layer.mlp)]
            if self.behind_attention:
                places.append(("attention_adapters", layer.input_layernorm, layer.self_attn))
            for place, norm, module in places:
                own = Bottleneck(hidden, hidden // self.reduction_factor, self.activation)
                layer.add_module(place, own)
                self._hook(norm, module, own)
        return model

    def _hook(self, norm: nn.Module, module: nn.Module, own: Bottleneck) -> None:
        stream: list[torch.Tensor] = []  # before the norm in front of the module

        def keep(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            stream[:] = arguments[:1]

        def add(_: nn.Module, __: Any, output: Any) -> Any:
            y = output[0] if isinstance(output, tuple) else output
            changed = y + own(y + stream[0] if self.reads_stream else y)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        norm.register_forward_pre_hook(keep)
        module.register_forward_hook(add)

    def save(self, model: Any, folder: Path, base: str) -> None:
        named = ((n, p.detach()) for n, p in model.named_parameters() if p.requires_grad)
        tensors = {
            name.replace("_adapters.", f"_adapters.adapters.{self.name}."): tensor
            for name, tensor in named
        }
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter.safetensors", {"format": "pt"})
        document = {
            "config": self._options(),
            "hidden_size": model.config.hidden_size,
            "model_class": type(model).__name__,
            "model_name": base,
            "model_type": model.config.model_type,
            "name": self.name,
            "version": "adapters.1.3.0",
        }
        write_config(folder, document)

    def _options(self) -> dict[str, Any]:
        return {
            "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0,
            "init_weights": "bert", "inv_adapter": None, "is_parallel": False, "leave_out": [],
            "ln_after": False, "ln_before": False, "mh_adapter": self.behind_attention,
            "non_linearity": self.activation, "original_ln_after": True,
            "original_ln_before": self.reads_stream, "output_adapter": True, "phm_layer": False,
            "reduction_factor": self.reduction_factor, "residual_before_ln": True, "scaling": 1.0,
            "use_gating": False,
        }  # fmt: skip


def write_config(folder: Path, document: dict[str, Any]) -> None:
    """Write adapter_config.json."""
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
