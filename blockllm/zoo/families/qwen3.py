"""Qwen 3 (dense): norms on queries and keys, heads of 128 unless config.json says otherwise."""

from __future__ import annotations

from blockllm.zoo.families.decoder import ATTENTION, plan_decoder, read_sizes
from blockllm.zoo.families.plan import Family, ModelPlan
from blockllm.zoo.families.windows import qwen_windows
from blockllm.zoo.settings_reader import SettingsReader


def _plan(config: SettingsReader) -> ModelPlan:
    sizes = read_sizes(config, num_kv_heads=32, head_dim=128)
    biases = ATTENTION if config.boolean("attention_bias", False) else ()
    windows = qwen_windows(config, sizes.num_layers)
    return plan_decoder(
        config, sizes, windows=windows, max_position=32_768, biases=biases, qk_norm=True
    )


FAMILY = Family("qwen3", "Qwen3ForCausalLM", _plan)
