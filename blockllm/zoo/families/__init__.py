"""Model families: one short file each says how a config.json becomes layers."""

from __future__ import annotations

from blockllm.errors import UnsupportedModel
from blockllm.zoo.families import llama, mistral, qwen2, qwen3
from blockllm.zoo.families.plan import Family, LayerPlan, ModelPlan
from blockllm.zoo.settings_reader import SettingsReader

__all__ = ["FAMILIES", "Family", "LayerPlan", "ModelPlan", "choose_family"]

FAMILIES = {
    family.name: family for family in (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
}


def choose_family(config: SettingsReader) -> Family:
    """The family of a config.json; raises UnsupportedModel naming the supported ones."""
    if "quantization_config" in config:
        raise UnsupportedModel(
            "quantised checkpoints are not supported; add the original fp32, bf16 or fp16 one"
        )
    architectures = config.texts("architectures")
    model_type = config.text("model_type", "")
    for family in FAMILIES.values():
        named = family.architecture in architectures or not architectures
        if named and model_type in (family.name, "" if architectures else family.name):
            return family
    found = (architectures[0] if architectures else model_type)[:80] or "nothing"
    known = ", ".join(family.architecture for family in FAMILIES.values())
    raise UnsupportedModel(f"architecture {found!r} is not supported (supported: {known})")
