"""Headers of safetensors files, indexes of shards, config.json."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from blockllm.errors import CheckpointError
from blockllm.zoo.checkpoint import open_model
from blockllm.zoo.families import choose_family
from blockllm.zoo.header import read_header
from blockllm.zoo.settings_reader import SettingsReader, read_json
from tools.campaigns.documents import put, read_document, seeds_of, words_of
from tools.campaigns.draws import Draws, edited, flipped
from tools.campaigns.oracle import Target

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    "c": {"dtype": "F4", "shape": [2, 0], "data_offsets": [32, 32]},
}
DTYPES = ("F64", "F16", "I8", "F8_E4M3", "F6_E2M3", "C64", "BOOL", "U16", "X")
NUM_BYTES = 32  # of the tensors
SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS = (
    {**SHAPE, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "rms_norm_eps": 1e-6,
     "hidden_act": "silu", "rope_theta": 1e4, "attention_bias": True, "mlp_bias": False,
     "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": [2, 3],
     "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                      "high_freq_factor": 4.0, "original_max_position_embeddings": 64}},
    {**SHAPE, "model_type": "mistral", "sliding_window": 16, "head_dim": 8, "eos_token_id": 2,
     "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 1.0, "truncate": False}},
    {**SHAPE, "model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 2,
     "layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 8,
     "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    {**SHAPE, "model_type": "qwen3", "head_dim": 16, "partial_rotary_factor": 0.5,
     "rope_scaling": {"type": "dynamic", "factor": 2.0, "attention_factor": 1.0}},
)  # fmt: skip


def header(_scratch: Path) -> Target:
    """read_header on a file of a header and 32 bytes of tensors."""
    descriptor = os.memfd_create("header")
    words = [*words_of([HEADER]), *DTYPES]

    def run(data: bytes) -> None:
        draws = Draws(data)
        kind = draws.below(3)
        if kind == 0:
            file = draws.rest()
        elif kind == 1:
            text = json.dumps(edited(HEADER, draws, words)).encode()
            file = len(text).to_bytes(8, "little") + text + bytes(NUM_BYTES)
        else:
            file = flipped(intact, draws)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, file, 0)
        entries = read_header(descriptor, "header")
        assert sum(entry.nbytes for entry in entries.values()) <= len(file)

    text = json.dumps(HEADER).encode()
    intact = len(text).to_bytes(8, "little") + text + bytes(NUM_BYTES)
    return Target((b"\0" + intact, b"\1\2\3\4\5\6\7", b"\2\1\x09\0\7"), run, 1024)


def config(_scratch: Path) -> Target:
    """config.json of every family, to the plan of its layers."""
    words = [*words_of(CONFIGS), "linear", "default", "longrope", "rope_type", "factor", "auto_map"]
    folder = _scratch / "config"
    folder.mkdir(exist_ok=True)

    def run(data: bytes) -> None:
        path = put(folder / "config.json", read_document(data, CONFIGS, words))
        reader = SettingsReader(read_json(path), "config.json")
        plan = choose_family(reader).plan(reader)
        assert 3 <= len(plan.layers) <= 1026
        assert 0 < plan.max_context < 2**31
        reader.integers("eos_token_id")

    return Target(seeds_of(CONFIGS), run, 2048)


def index(scratch: Path) -> Target:
    """model.safetensors.index.json beside two shards and a file outside."""
    folder = scratch / "index" / "model"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    shard = len(text).to_bytes(8, "little") + text + bytes(8)
    put(folder / "model-1.safetensors", shard)
    put(folder / "model-2.safetensors", shard.replace(b'"a"', b'"b"'))
    put(folder.parent / "outside.safetensors", shard.replace(b'"a"', b'"c"'))
    weight_map = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    intact = [{"metadata": {"total_size": 16}, "weight_map": weight_map}]
    words = [*words_of(intact), "../outside.safetensors", "c", ".", "..", "model-1.safetensors/"]

    def run(data: bytes) -> None:
        put(folder / "model.safetensors.index.json", read_document(data, intact, words))
        with open_model(folder) as files:
            assert set(files.tensors) <= {"a", "b"}

    def run_closed(data: bytes) -> None:
        before = len(os.listdir("/proc/self/fd"))
        try:
            run(data)
        finally:
            left = len(os.listdir("/proc/self/fd")) - before
            assert left == 0, f"{left} files are left open"

    return Target(seeds_of(intact), run_closed, 1024)


def pointer(scratch: Path) -> Target:
    """A whole folder whose weight file, config and strangers are any bytes."""
    from blockllm.zoo.contents import look_at
    from blockllm.zoo.model import open_checkpoint

    folder = scratch / "pointer"
    folder.mkdir(exist_ok=True)
    put(folder / "config.json", json.dumps(CONFIGS[0]).encode())

    def run(data: bytes) -> None:
        put(folder / "model.safetensors", data)
        look_at(folder)
        with contextlib.suppress(CheckpointError):
            open_checkpoint(folder, as_int8=True).files.close()

    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    return Target((lfs, b"\2\0\0\0\0\0\0\0{}"), run, 512)
