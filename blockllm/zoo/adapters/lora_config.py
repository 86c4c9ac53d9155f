"""adapter_config.json of PEFT's LoRA adapters: ranks, scales, and what is refused."""

from __future__ import annotations

import math
from typing import NamedTuple

from blockllm.errors import UnsupportedModel
from blockllm.zoo.adapters.options import check_options
from blockllm.zoo.adapters.patterns import ByModule, read_numbers, read_ranks
from blockllm.zoo.settings_reader import SettingsReader

# what is read, and what says how the adapter was trained or which tensors it has
_OPTIONS = {
    "alpha_pattern", "init_lora_weights", "layer_replication", "lora_alpha", "lora_bias",
    "modules_to_save", "r", "rank_pattern", "target_parameters", "trainable_token_indices",
    "use_dora", "use_rslora",
} | {
    "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_config", "megatron_core", "monteclora_config",
    "qalora_group_size", "runtime_config", "target_modules", "velora_config",
}  # fmt: skip
# initialisations that also change the base's weights; peft clears the option when converting
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraConfig(NamedTuple):
    """The options of a LoRA adapter that matter for serving it."""

    ranks: ByModule[int]
    alphas: ByModule[float]
    rank_stabilised: bool
    has_bias: bool
    is_dora: bool
    parameters: tuple[str, ...]  # weights that are targeted by their own names

    def rank_of(self, module: str) -> int:
        """Rank of the update of a module such as `model.layers.0.self_attn.q_proj`."""
        return self.ranks.of(self._target(module))

    def scale_of(self, module: str) -> float:
        """Factor of the update of a module."""
        rank = self.rank_of(module)
        alpha = self.alphas.of(self._target(module))
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)

    def _target(self, module: str) -> str:
        # peft chooses by the name of what it wraps: with `target_parameters` the weight, not the
        # linear that has it
        weight = f"{module}.weight"
        return weight if f".{weight}".endswith(self.parameters) else module


def read_lora_config(reader: SettingsReader) -> LoraConfig:
    """The adapter's options; raises UnsupportedModel for those that are not supported."""
    check_options(reader, _OPTIONS)
    _check_initialisation(reader)
    config = LoraConfig(
        ranks=read_ranks(reader),
        alphas=read_numbers(reader, "lora_alpha", "alpha_pattern"),
        rank_stabilised=reader.boolean("use_rslora", False),
        has_bias=reader.boolean("lora_bias", False),
        is_dora=reader.boolean("use_dora", False),
        parameters=tuple(f".{name}" for name in reader.texts("target_parameters")),
    )
    if config.is_dora and config.has_bias:
        raise UnsupportedModel(f"{reader.where}: DoRA with lora_bias is not supported")
    return config


def _check_initialisation(reader: SettingsReader) -> None:
    if not reader.is_text("init_lora_weights"):
        return
    name = reader.text("init_lora_weights")
    if name.startswith(_CHANGES_BASE):
        raise UnsupportedModel(
            f"{reader.where}: {name[:40]} adapters belong to a changed base; convert it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) and add that"
        )
