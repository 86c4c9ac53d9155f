"""Mistral and Ministral: Llama with grouped queries and a sliding window (absent: 4096 tokens,
null: none), in every layer or in those that `layer_types` names.
"""

from __future__ import annotations

from blockllm.zoo.families.decoder import plan_decoder, read_sizes
from blockllm.zoo.families.plan import Family, ModelPlan
from blockllm.zoo.families.windows import mistral_windows
from blockllm.zoo.settings_reader import SettingsReader


def _plan(config: SettingsReader) -> ModelPlan:
    sizes = read_sizes(config, num_kv_heads=8)
    windows = mistral_windows(config, sizes.num_layers)
    return plan_decoder(config, sizes, windows=windows, max_position=131_072, eos_ids=(2,))


FAMILY = Family("mistral", "MistralForCausalLM", _plan)
