"""Llama 1 to 3.3, and the many models saved in its format."""

from __future__ import annotations

from blockllm.zoo.families.decoder import ATTENTION, MLP, plan_decoder, read_sizes
from blockllm.zoo.families.plan import Family, ModelPlan
from blockllm.zoo.families.windows import Windows, check_no_window
from blockllm.zoo.settings_reader import SettingsReader


def _plan(config: SettingsReader) -> ModelPlan:
    sizes = read_sizes(config)
    biases: tuple[str, ...] = ATTENTION if config.boolean("attention_bias", False) else ()
    biases += MLP if config.boolean("mlp_bias", False) else ()
    windows: Windows = [None] * sizes.num_layers
    plan = plan_decoder(
        config, sizes, windows=windows, max_position=2048, biases=biases, eos_ids=(2,)
    )
    check_no_window(config, plan.max_context)
    return plan


FAMILY = Family("llama", "LlamaForCausalLM", _plan)
