"""Mistral: Llama with grouped queries and a sliding window in every layer (absent: 4096 tokens,
null: none). `layer_types` is ignored, as transformers ignores it for this architecture.
"""

from __future__ import annotations

from blockllm.zoo.families.decoder import plan_decoder, read_sizes
from blockllm.zoo.families.plan import Family, ModelPlan
from blockllm.zoo.settings_reader import SettingsReader


def _plan(config: SettingsReader) -> ModelPlan:
    sizes = read_sizes(config, num_kv_heads=8)
    is_null = config.is_given("sliding_window") and "sliding_window" not in config
    window = None if is_null else config.integer("sliding_window", 4096)
    windows = [window] * sizes.num_layers
    return plan_decoder(config, sizes, windows=windows, max_position=131_072, eos_ids=(2,))


FAMILY = Family("mistral", "MistralForCausalLM", _plan)
