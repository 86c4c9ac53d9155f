"""Model families: one short file each says how a config.json becomes layers."""

from __future__ import annotations

from blockllm.zoo.families import llama, mistral, qwen2, qwen3
from blockllm.zoo.families.architecture import find_family
from blockllm.zoo.families.foreign import refuse_foreign
from blockllm.zoo.families.plan import Family, LayerPlan, ModelPlan
from blockllm.zoo.settings_reader import SettingsReader

__all__ = ["FAMILIES", "Family", "LayerPlan", "ModelPlan", "choose_family"]

# by `model_type`; Ministral is what transformers calls a Mistral with `layer_types`
FAMILIES = {
    "llama": llama.FAMILY,
    "mistral": mistral.FAMILY,
    "ministral": mistral.FAMILY,
    "qwen2": qwen2.FAMILY,
    "qwen3": qwen3.FAMILY,
}


def choose_family(config: SettingsReader) -> Family:
    """The family of a config.json; raises UnsupportedModel naming the supported ones, or the key
    that asks for what none of them computes."""
    family = find_family(config, FAMILIES)
    refuse_foreign(config)
    return family
