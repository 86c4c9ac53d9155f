"""Checkpoints and adapters of the benchmark family as GGUF files in fp32, for llama.cpp as a peer.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors.numpy import load_file

Value = bool | int | float | str | Sequence[int] | Sequence[str]
Arrays = Mapping[str, np.ndarray]

_ALIGNMENT = 32  # bytes
_ENDS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_checkpoint(folder: Path, out: Path) -> None:
    """A checkpoint folder of `bench_family` as one GGUF file."""
    config, tensors = _read_json(folder / "config.json"), load_file(folder / "model.safetensors")
    fields = {**_sizes(config), **_tokenizer(folder, config["vocab_size"])}
    write(out, fields, {_name(name): rotated(name, tensors[name], config) for name in tensors})


def write_adapter(folder: Path, base: Path, out: Path) -> None:
    """A LoRA folder of `bench_family` as an adapter file for the GGUF of its base."""
    config, adapter = _read_json(base / "config.json"), _read_json(folder / "adapter_config.json")
    tensors: dict[str, np.ndarray] = {}
    for name, array in load_file(folder / "adapter_model.safetensors").items():
        module, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
        if factor.startswith("B"):
            array = rotated(module + ".weight", array, config)
        tensors[f"{_name(module + '.weight')}.lora_{factor[0].lower()}"] = array
    fields = {
        "general.architecture": config["model_type"],
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(adapter["lora_alpha"]),
    }
    write(out, fields, tensors)


def write(out: Path, fields: Mapping[str, Value], tensors: Arrays) -> None:
    """One file of fields and fp32 tensors; `out` appears when it is whole."""
    part = out.with_name(out.name + ".part")
    with part.open("wb") as file:
        file.write(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(fields)))
        for key, value in fields.items():
            file.write(_text(key) + _typed(value))
        offset = 0
        for name, array in tensors.items():
            shape = array.shape[::-1]  # the fastest dimension first
            file.write(_text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
            file.write(struct.pack("<IQ", 0, offset))  # type 0: fp32
            offset += _padded(4 * array.size)
        _pad(file)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array, np.float32).tobytes())
            _pad(file)
    part.replace(out)


def _name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` as `blk.3.ffn_up.weight`."""
    module, _, kind = name.rpartition(".")
    if module in _ENDS:
        return f"{_ENDS[module]}.{kind}"
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    if layer is None:
        raise ValueError(f"tensor {name!r}: expected one of the benchmark family's")
    return f"blk.{layer[1]}.{_LAYER[layer[2]]}.{kind}"


def rotated(name: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """Rows of a Llama's query and key in llama.cpp's order: it rotates neighbouring pairs, where
    Hugging Face files pair the halves of a head."""
    kinds = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    found = kinds.get(name.split(".")[-2])
    if config["model_type"] != "llama" or found is None:
        return array
    heads, rest = config[found], array.shape[1:]
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *rest)
    return halves.swapaxes(1, 2).reshape(array.shape)


def _sizes(config: Mapping[str, Any]) -> dict[str, Value]:
    kind, head = config["model_type"], config["head_dim"]
    sizes: dict[str, Value] = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": head,
        "rope.freq_base": float(config["rope_parameters"]["rope_theta"]),
    }
    return {"general.architecture": kind, **{f"{kind}.{key}": sizes[key] for key in sizes}}


def _tokenizer(folder: Path, vocab_size: int) -> dict[str, Value]:
    model = _read_json(folder / "tokenizer.json")["model"]
    words = {number: word for word, number in model["vocab"].items()}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [words.get(i, f"[unused{i}]") for i in range(vocab_size)],
        "tokenizer.ggml.token_type": [1] * vocab_size,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }


def _read_json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    """The number of a type, then the value."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if all(isinstance(one, str) for one in value):
        body = b"".join(_text(str(one)) for one in value)
        return struct.pack("<IIQ", 9, 8, len(value)) + body
    return struct.pack("<IIQ", 9, 5, len(value)) + np.asarray(value, "<i4").tobytes()


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_padded(file.tell()) - file.tell()))
