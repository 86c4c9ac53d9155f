"""adapter_config.json of PEFT's LoRA adapters: ranks, scales, and what is refused."""

from __future__ import annotations

import math
from typing import NamedTuple

from blockllm.errors import UnsupportedModel
from blockllm.zoo.adapters.patterns import ByModule, read_numbers, read_ranks
from blockllm.zoo.adapters.plan import check_options
from blockllm.zoo.settings_reader import SettingsReader

_OPTIONS = {
    "alpha_pattern", "bias", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "megatron_core", "modules_to_save",
    "qalora_group_size", "r", "rank_pattern", "runtime_config", "target_modules",
    "trainable_token_indices", "use_dora", "use_rslora",
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

    def rank_of(self, module: str) -> int:
        """Rank of the update of a module such as `model.layers.0.self_attn.q_proj`."""
        return self.ranks.of(module)

    def scale_of(self, module: str) -> float:
        """Factor of the update of a module."""
        rank = self.rank_of(module)
        alpha = self.alphas.of(module)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


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
