"""Which family a config.json belongs to. `model_type` decides, as in AutoModelForCausalLM;
`architectures` is what a class was called when it was saved, and only tells what is no model
that continues text.
"""

from __future__ import annotations

import re

from blockllm.errors import UnsupportedModel
from blockllm.zoo.families.plan import Family
from blockllm.zoo.settings_reader import SettingsReader

_NOT_CAUSAL = (
    (r"\w*For(Sequence|Token|Image|Audio)Classification|\w*For(QuestionAnswering|MultipleChoice)",
     "it labels texts instead of continuing them"),
    (r"\w*(Reward|ForScore)\w*", "it scores texts instead of continuing them"),
    (r"\w*For(ConditionalGeneration|ImageTextToText|Vision2Seq)",
     "it has an encoder, or reads images or sound"),
    (r"\w*(Eagle|Medusa)\w*", "it drafts for another model and cannot stand alone"),
    (r"\w*ForMaskedLM|\w*(Bi|Encoder|Embedding)Model",
     "it is an encoder, which predicts no next token"),
    (r"(Llama|LLaMA|Mistral|Ministral|Qwen2|Qwen3)Model",
     "it was saved without its head; save the …ForCausalLM model"),
)  # fmt: skip
_OTHER_KINDS = (
    (("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"),
     ", a mixture of experts,"),
    (("vision_config", "audio_config", "text_config"), ", which reads more than text,"),
)  # fmt: skip


def find_family(config: SettingsReader, families: dict[str, Family]) -> Family:
    """The family by `model_type`, or by `architectures` where that is all there is.

    Raises UnsupportedModel with the reason, naming what is supported.
    """
    architectures = config.texts("architectures")
    model_type = config.text("model_type", "")
    _check_causal(config.where, architectures)
    if model_type in families:
        return families[model_type]
    for family in families.values():
        if not model_type and family.architecture in architectures:
            return family
    found = model_type or (architectures[0] if architectures else "nothing")
    kind = next((kind for keys, kind in _OTHER_KINDS if any(key in config for key in keys)), "")
    raise UnsupportedModel(
        f"{config.where}: model_type: {found[:80]!r}{kind} is not supported "
        f"(supported: the dense decoders {', '.join(families)})"
    )


def _check_causal(where: str, architectures: list[str]) -> None:
    for name in architectures[:1]:
        for pattern, reason in _NOT_CAUSAL:
            if len(name) <= 200 and re.fullmatch(pattern, name):
                raise UnsupportedModel(f"{where}: architectures: {name} is not supported: {reason}")
