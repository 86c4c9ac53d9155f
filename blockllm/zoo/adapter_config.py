"""adapter_config.json of a PEFT adapter: what it adds, at which scale, and what is refused."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NamedTuple, TypeVar

from blockllm.errors import CheckpointError, UnsupportedModel
from blockllm.zoo.settings_reader import SettingsReader, read_json

Number = TypeVar("Number", int, float)

CONFIG_FILE = "adapter_config.json"

# larger than any useful rank; bounds what a wrong file can ask for
_MAX_RANK = 1 << 16
_MAX_PATTERN = 512
# `(a+)+`: takes exponential time on some names
_SLOW_PATTERN = re.compile(r"[+*}]\)[+*{]")

# options that say how the adapter was trained or saved, not what it computes
_HARMLESS = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_bias",
    "lora_dropout", "megatron_core", "modules_to_save", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_rslora",
}  # fmt: skip
# initialisations that also change the base's weights; peft clears the option when converting
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


class AdapterConfig(NamedTuple):
    """The options of a LoRA adapter that matter for serving it."""

    base: str
    rank: int
    alpha: float
    rank_stabilised: bool
    has_bias: bool
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


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The adapter's options; raises UnsupportedModel for those that are not supported."""
    reader = SettingsReader(read_json(folder / CONFIG_FILE), CONFIG_FILE)
    kind = reader.text("peft_type")
    if kind != "LORA":
        raise UnsupportedModel(f"{CONFIG_FILE}: adapter type {kind[:40]} comes later; LORA works")
    strangers = sorted(set(reader.truthy_keys()) - _HARMLESS)
    if strangers:
        raise UnsupportedModel(f"{CONFIG_FILE}: the option {strangers[0][:80]!r} is not supported")
    _check_initialisation(reader)
    ranks, alphas = reader.section("rank_pattern"), reader.section("alpha_pattern")
    return AdapterConfig(
        base=reader.text("base_model_name_or_path", ""),
        rank=reader.integer("r", high=_MAX_RANK),
        alpha=reader.number("lora_alpha"),
        rank_stabilised=reader.boolean("use_rslora", False),
        has_bias=reader.boolean("lora_bias", False),
        rank_pattern={key: ranks.integer(key, high=_MAX_RANK) for key in _patterns(ranks)},
        alpha_pattern={key: alphas.number(key) for key in _patterns(alphas)},
    )


def _check_initialisation(reader: SettingsReader) -> None:
    if not reader.is_text("init_lora_weights"):
        return
    name = reader.text("init_lora_weights")
    if name.startswith(_CHANGES_BASE):
        raise UnsupportedModel(
            f"{CONFIG_FILE}: {name[:40]} adapters belong to a changed base; convert it with "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...) and add that"
        )


def _patterns(section: SettingsReader) -> list[str]:
    names = section.all_keys()
    for pattern in names:
        if len(pattern) > _MAX_PATTERN or _SLOW_PATTERN.search(pattern):
            raise UnsupportedModel(f"{CONFIG_FILE}: pattern {pattern[:80]!r} is too complex")
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise CheckpointError(f"{CONFIG_FILE}: pattern {pattern[:80]!r}: {error}") from error
    return names


def _choose(patterns: dict[str, Number], module: str, default: Number) -> Number:
    # the first key that matches the end of the module's name, as peft chooses
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
