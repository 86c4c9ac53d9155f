"""Qwen 2 and 2.5: biases on query, key and value."""

from __future__ import annotations

from blockllm.zoo.families.decoder import ATTENTION, plan_decoder, read_sizes
from blockllm.zoo.families.plan import Family, ModelPlan
from blockllm.zoo.families.windows import qwen_windows
from blockllm.zoo.settings_reader import SettingsReader


def _plan(config: SettingsReader) -> ModelPlan:
    sizes = read_sizes(config, num_kv_heads=32)
    windows = qwen_windows(config, sizes.num_layers)
    return plan_decoder(config, sizes, windows=windows, max_position=32_768, biases=ATTENTION[:3])


FAMILY = Family("qwen2", "Qwen2ForCausalLM", _plan)
