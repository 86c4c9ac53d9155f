"""Checkpoints whose weights are quantised, or whose config.json asks for it when they are loaded.

Both are refused: the second, too, computes something else than its weights say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from blockllm.errors import UnsupportedModel
from blockllm.zoo.checkpoint import Source
from blockllm.zoo.settings_reader import SettingsReader

# tensors beside packed weights, by what GPTQ, AWQ, compressed-tensors, fp8, bitsandbytes, MLX write
_MARKS = re.compile(
    r".*\.(qweight|qzeros|g_idx|scales|weight_packed|weight_scale(_inv)?|weight_shape|absmax|"
    r"quant_map|quant_state\..+|SCB|weight_scale_2|input_scale)|.*\.weight\.(absmax|quant_.+)"
)
_PACKED = ("U8", "I8", "U32", "I32", "F8_E4M3", "F8_E5M2", "F4")
_BACK = {
    "bitsandbytes": ", or load it, call dequantize() on the model and save that",
    "mlx": ", or give back its numbers with `mlx_lm.convert --dequantize`",
}


def refuse_quantised(config: SettingsReader, tensors: Mapping[str, Source]) -> None:
    """Raise UnsupportedModel if the weights are quantised or are to be; names the method."""
    key = next((key for key in ("quantization_config", "quantization") if key in config), None)
    section = config.section(key) if key else SettingsReader({}, "")
    method = section.text("quant_method", "mlx" if section.is_given("group_size") else "")[:40]
    if any(_is_packed(name, source) for name, source in tensors.items()):
        by = f" by {method}" if method else ""
        raise UnsupportedModel(
            f"the weights are quantised{by}, which is not supported; add the original fp32, bf16 "
            f"or fp16 checkpoint{_BACK.get(method, '')}"
        )
    if section.all_keys():
        raise UnsupportedModel(
            f"{config.where}: {key} asks for {method or 'quantisation'} when the model is loaded, "
            f"but the weights are not quantised; to serve them as they are, remove {key} from "
            "config.json"
        )


def _is_packed(name: str, source: Source) -> bool:
    packed = source.entry.dtype in _PACKED and name.endswith(".weight")
    return packed or _MARKS.fullmatch(name) is not None
