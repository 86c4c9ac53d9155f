"""Folders as trainers and other programs write them: read, or refused with the real cause."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.errors import CheckpointError, UnsafeCheckpoint, UnsupportedModel, ZooError
from blockllm.zoo import Zoo
from tests.makers import make_lora

CONFIG, WEIGHTS = "config.json", "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
TRAINED = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth")

# files of a folder, and what the refusal says: the cause and what to do
FOLDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "no config.json; the folder is empty"),
    "only a tokenizer": (("tokenizer.json", "README.md"), "the folder holds README.md, tokenizer"),
    "config alone": ((CONFIG,), r"no model\.safetensors; the folder holds config\.json"),
    "config and trainer's files": ((CONFIG, *TRAINED), "left its settings there and no weights"),
    "weights alone": ((WEIGHTS,), "no config.json; the weights cannot be read without it"),
    "adapter weights alone": (("adapter_model.safetensors",), "without adapter_config.json"),
    "adapter config alone": (("adapter_config.json",), r"no adapter_model\.safetensors"),
    "trainer's output": (
        ("checkpoint-90/config.json", "checkpoint-200/config.json", *TRAINED),
        r"saved 2 checkpoints in it and no final model.* give .*checkpoint-200$",
    ),
    "one named adapter": (
        ("sft/adapter_config.json", "README.md"), "the only adapter is in a subfolder: give .*sft$"
    ),
    "named adapters": (
        ("sft/adapter_config.json", "dpo/adapter_config.json"), "subfolders hold dpo, sft: give"
    ),
    "one model inside": (("merged/config.json",), "only model is in a subfolder: give .*merged"),
    "hub cache": (("snapshots/0a1b/config.json",), "the only model is in .* give .*snapshots/0a1b"),
    "FSDP": (
        (CONFIG, "pytorch_model_fsdp_0/__0_0.distcp", *TRAINED), "accelerate merge-weights .*fsdp_0"
    ),
    "DCP": (("__0_0.distcp", ".metadata"), "format_utils dcp_to_torch"),
    "DCP inside": ((CONFIG, "weights/__0_0.distcp"), "format_utils dcp_to_torch"),
    "ZeRO": (
        (CONFIG, "zero_to_fp32.py", "latest", "global_step9/zero_optim_states.pt"),
        "python -m deepspeed.utils.zero_to_fp32 .* OUT --safe_serialization",
    ),
    "ZeRO without script": ((CONFIG, "global_step9/x_optim_states.pt"), "DeepSpeed ZeRO"),
    "verl": (("model_world_size_2_rank_0.pt",), "verl.model_merger merge"),
    "Megatron": (("latest_checkpointed_iteration.txt", "iter_01/x.pt"), "Megatron"),
    "GGUF": (("m.Q4_K_M.gguf",), "m.Q4_K_M.gguf is a GGUF file, which is not supported yet"),
    "GGUF beside config": ((CONFIG, "m.gguf"), "GGUF"),
    "Mistral's own": (("params.json", "consolidated.safetensors"), "Mistral's own format"),
    "Llama's own": (("params.json", "consolidated.00.pth"), "convert_llama_weights_to_hf"),
    "Llama's own inside": ((CONFIG, "original/consolidated.00.pth"), "Llama's own format"),
    "diffusers": (("model_index.json", "unet/config.json"), "diffusers"),
    "sentence-transformers": (("modules.json", CONFIG, WEIGHTS), "embeds texts"),
    "ONNX": ((CONFIG, "model.onnx"), "model.onnx is an ONNX graph"),
    "ONNX inside": ((CONFIG, "onnx/model.onnx"), "ONNX"),
    "OpenVINO": ((CONFIG, "openvino_model.xml"), "OpenVINO"),
    "TensorFlow": ((CONFIG, "tf_model.h5"), "TensorFlow"),
    "Flax": ((CONFIG, "flax_model.msgpack"), "Flax"),
    "pickled": ((CONFIG, "pytorch_model.bin", *TRAINED), "pytorch_model.bin is pickled"),
    "pickled shards": ((CONFIG, "pytorch_model-00001-of-00002.bin"), "pickled"),
    "pickled, joined from ZeRO": ((CONFIG, "pytorch_model.bin", "zero_to_fp32.py"), "is pickled"),
    "pickled FSDP": ((CONFIG, "pytorch_model_fsdp.bin"), "pytorch_model_fsdp.bin is pickled"),
    "pickled beside others": ((CONFIG, "pytorch_model.bin", "tf_model.h5"), "bin is pickled"),
    "pickled adapter": (("adapter_config.json", "adapter_model.bin"), "adapter_model.bin is pic"),
    "shards without index": ((CONFIG, "model-00001-of-00002.safetensors"), "no model.*index"),
    "variant": ((CONFIG, "model.fp16.safetensors"), "fp16.safetensors is a variant; rename"),
}  # fmt: skip
UNSAFE = ("pickled", "Llama")


@pytest.mark.parametrize("case", FOLDERS)
def test_the_cause_is_said(zoo: Zoo, tied: Path, tmp_path: Path, case: str) -> None:
    zoo.add("base", tied)
    files, match = FOLDERS[case]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        config = tied / CONFIG if name == CONFIG else None
        (folder / name).write_bytes(config.read_bytes() if config else b'{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=match) as caught:
        zoo.add("model", folder, base="base" if "adapter_config.json" in files else None)
    assert str(caught.value).count("\n") == 0
    assert isinstance(caught.value, UnsafeCheckpoint) == case.startswith(UNSAFE)


@pytest.mark.parametrize(
    "name", [WEIGHTS, CONFIG, "tokenizer.json", "model-00001-of-00002.safetensors"]
)
def test_pointers_of_git_lfs(zoo: Zoo, tied: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(tied, tmp_path / "folder"))
    (folder / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{name} is a pointer of Git LFS.*git lfs pull"):
        zoo.add("model", folder)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (WEIGHTS, "is a file; give the folder it lies in"),
        ("m.gguf", "m.gguf is a GGUF file, which is not supported yet"),
    ],
)
def test_a_path_to_a_file(zoo: Zoo, tmp_path: Path, name: str, match: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=match):
        zoo.add("model", tmp_path / name)


def test_a_merged_model_beside_a_stale_adapter_config(zoo: Zoo, tied: Path, tmp_path: Path) -> None:
    adapter = make_lora(tied, tmp_path / "adapter")
    folder = Path(shutil.copytree(tied, tmp_path / "merged"))
    shutil.copy(adapter / "adapter_config.json", folder)
    note, *_ = zoo.add("merged", folder).notes
    assert "adapter_config.json was not read" in note and "a merged model" in note
    assert zoo.card("merged").kind == "full"
    with pytest.raises(ZooError, match="full checkpoint, not an adapter"):
        zoo.add("other", folder, base="merged")


def test_an_adapter_beside_a_full_checkpoint(zoo: Zoo, tied: Path, tmp_path: Path) -> None:
    zoo.add("base", tied)
    folder = make_lora(tied, tmp_path / "both")
    shutil.copy(tied / WEIGHTS, folder)
    (note,) = zoo.add("adapter", folder, base="base").notes
    assert "a full checkpoint too" in note
    assert zoo.card("adapter").kind == "lora"


def with_config(source: Path, target: Path, **more: Any) -> Path:
    """A copy of a checkpoint with more in its config.json."""
    shutil.copytree(source, target)
    config = json.loads((target / CONFIG).read_text())
    (target / CONFIG).write_text(json.dumps({**config, **more}))
    return target


BITS = {"quant_method": "bitsandbytes", "load_in_4bit": True}
METHODS: list[tuple[dict[str, Any], str]] = [
    ({"quantization_config": BITS}, "bitsandbytes"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
    ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
    ({"quantization_config": {"bits": 8}}, "quantisation"),
    ({"quantization": {"group_size": 64, "bits": 4}}, "mlx"),
]


@pytest.mark.parametrize(("config", "method"), METHODS, ids=str)
def test_a_wish_to_quantise_weights_that_are_not(
    zoo: Zoo, tied: Path, tmp_path: Path, config: dict[str, Any], method: str
) -> None:
    folder = with_config(tied, tmp_path / "folder", **config)
    (key,) = config
    with pytest.raises(UnsupportedModel, match=f"{key} asks for {method} when.* remove {key}"):
        zoo.add("model", folder)


PACKED = "model.layers.0.mlp.up_proj."


@pytest.mark.parametrize(
    ("config", "tensors", "match"),
    [
        (METHODS[0][0], {"weight": torch.uint8, "weight.absmax": torch.float32}, "by bitsand.*deq"),
        (METHODS[1][0], {"qweight": torch.int32, "scales": torch.float16}, "quantised by gptq"),
        (METHODS[3][0], {"weight": torch.float8_e4m3fn}, "quantised by fp8"),
        (METHODS[4][0], {"weight_packed": torch.int32}, "quantised by compressed-tensors"),
        (METHODS[6][0], {"weight": torch.uint32, "scales": torch.float16}, "mlx.*--dequantize"),
        ({}, {"qweight": torch.int32}, "quantised, which"),
        ({}, {"weight": torch.uint8}, "quantised, which"),
    ],
    ids=str,
)
def test_quantised_weights(
    zoo: Zoo,
    tied: Path,
    tmp_path: Path,
    config: dict[str, Any],
    tensors: dict[str, torch.dtype],
    match: str,
) -> None:
    folder = with_config(tied, tmp_path / "folder", **config)
    weights = load_file(folder / WEIGHTS)
    del weights[PACKED + "weight"]
    packed = {PACKED + name: torch.zeros(4).to(dtype) for name, dtype in tensors.items()}
    save_file(weights | packed, folder / WEIGHTS)
    with pytest.raises(UnsupportedModel, match=match):
        zoo.add("model", folder)


@pytest.mark.parametrize("section", [None, {}])
def test_an_empty_quantisation_changes_nothing(
    zoo: Zoo, tied: Path, tmp_path: Path, section: Any
) -> None:
    zoo.add("plain", tied)
    zoo.add("model", with_config(tied, tmp_path / "folder", quantization_config=section))
    assert zoo.layers("model") == zoo.layers("plain")
