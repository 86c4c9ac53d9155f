"""Settings by which other families compute something else. A checkpoint that has one and calls
itself one of ours would be served wrongly, whatever other programs make of it.
"""

from __future__ import annotations

from typing import Any

from blockllm.errors import UnsupportedModel
from blockllm.zoo.settings_reader import SettingsReader

# by key: the values that change nothing; null and absent never do
_MODEL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "alibi": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),  # Granite
    "attn_logit_softcapping": (0,),  # Gemma 2
    "clip_qkv": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (0,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "logit_scale": (1,),  # Cohere
    "logits_scaling": (1,),
    "no_rope_layers": ([],),  # SmolLM 3
    "num_kv_shared_layers": (0,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "scale_depth": (),  # MiniCPM
    "scale_emb": (1,),
    "use_mrope": (False,),
}
_ROPE: dict[str, tuple[Any, ...]] = {
    "alpha": (),  # Hunyuan
    "attn_factor": (1,),
    "extrapolation_factor": (1,),
    "llama_4_scaling_beta": (0,),
    "partial_rotary_factor": (1,),
}


def refuse_foreign(config: SettingsReader) -> None:
    """Raise UnsupportedModel for a key of config.json that asks for another computation."""
    _refuse(config, _MODEL)
    _refuse(config, {"partial_rotary_factor": (1,)})


def refuse_foreign_rope(section: SettingsReader) -> None:
    """Raise UnsupportedModel for a setting of the rotary embedding that asks for another
    computation, or for several by layer type."""
    for name in section.all_keys():
        if section.is_section(name):
            raise UnsupportedModel(
                f"{section.where}: {name[:40]}: rotary embeddings that differ by layer type are "
                "not supported"
            )
    _refuse(section, _ROPE)


def _refuse(reader: SettingsReader, neutral: dict[str, tuple[Any, ...]]) -> None:
    for name, values in neutral.items():
        if name in reader and not reader.is_one_of(name, values):
            known = f" (only {values[0]} is)" if values else ""
            raise UnsupportedModel(
                f"{reader.where}: {name}: {reader.shown(name)} is not supported{known}"
            )
