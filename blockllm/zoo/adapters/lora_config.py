"""adapter_config.json of PEFT's LoRA adapters: ranks, scales, and what is refused."""

from __future__ import annotations

import math
import re
from typing import NamedTuple, TypeVar

from blockllm.errors import CheckpointError, UnsupportedModel
from blockllm.zoo.adapters.plan import check_options
from blockllm.zoo.settings_reader import SettingsReader

Number = TypeVar("Number", int, float)

# larger than any useful rank; bounds what a wrong file can ask for
_MAX_RANK = 1 << 16
_MAX_PATTERN = 512
# `(a+)+`: takes exponential time on some names
_SLOW_PATTERN = re.compile(r"[+*}]\)[+*{]")

_OPTIONS = {
    "alpha_pattern", "bias", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_bias", "lora_dropout", "megatron_core", "modules_to_save",
    "qalora_group_size", "r", "rank_pattern", "runtime_config", "target_modules", "use_dora",
    "use_rslora",
}  # fmt: skip
# initialisations that also change the base's weights; peft clears the option when converting
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class LoraConfig(NamedTuple):
    """The options of a LoRA adapter that matter for serving it."""

    rank: int
    alpha: float
    rank_stabilised: bool
    has_bias: bool
    is_dora: bool
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]

    def rank_of(self, module: str) -> int:
        """Rank of the update of a module such as `model.layers.0.self_attn.q_proj`."""
        return _choose(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """Factor of the update of a module."""
        rank = self.rank_of(module)
        alpha = _choose(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read_lora_config(reader: SettingsReader) -> LoraConfig:
    """The adapter's options; raises UnsupportedModel for those that are not supported."""
    check_options(reader, _OPTIONS)
    _check_initialisation(reader)
    ranks, alphas = reader.section("rank_pattern"), reader.section("alpha_pattern")
    config = LoraConfig(
        rank=reader.integer("r", high=_MAX_RANK),
        alpha=reader.number("lora_alpha"),
        rank_stabilised=reader.boolean("use_rslora", False),
        has_bias=reader.boolean("lora_bias", False),
        is_dora=reader.boolean("use_dora", False),
        rank_pattern={key: ranks.integer(key, high=_MAX_RANK) for key in _patterns(ranks)},
        alpha_pattern={key: alphas.number(key) for key in _patterns(alphas)},
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


def _patterns(section: SettingsReader) -> list[str]:
    names = section.all_keys()
    for pattern in names:
        if len(pattern) > _MAX_PATTERN or _SLOW_PATTERN.search(pattern):
            raise UnsupportedModel(f"{section.where}: pattern {pattern[:80]!r} is too complex")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{section.where}: pattern {pattern[:80]!r}: {error}") from error
    return names


def _choose(patterns: dict[str, Number], module: str, default: Number) -> Number:
    # the first key that matches the end of the module's name, as peft chooses
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
