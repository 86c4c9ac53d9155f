"""Tensors that no family reads: skipped and said where transformers skips them, else refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.errors import CheckpointError
from blockllm.zoo import Zoo

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def with_tensors(source: Path, target: Path, names: list[str]) -> Path:
    """A copy of a checkpoint with more tensors."""
    shutil.copytree(source, target)
    more = {name: torch.ones(2) for name in names}
    save_file(load_file(source / WEIGHTS) | more, target / WEIGHTS)
    return target


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.self_attn.rotary_emb.cos_cached",
        "model.rotary_emb.inv_freq",
        "rope.freqs",
        "model.layers.1.self_attn.masked_bias",
        "model.layers.1.attn.bias",
        "model.position_ids",
        "model.layers.2.mlp._extra_state",
        "v_head.summary.weight",
    ],
)
def test_what_no_token_depends_on_is_skipped(
    zoo: Zoo, llama: Path, tmp_path: Path, name: str
) -> None:
    zoo.add("plain", llama)
    report = zoo.add("more", with_tensors(llama, tmp_path / "more", [name]))
    assert report.stored_bytes == 0
    assert zoo.layers("more") == zoo.layers("plain")
    (note,) = report.notes
    assert note.startswith("skipped tensors")
    assert note.endswith("(1 in all)")


def test_the_note_counts_and_groups_names(zoo: Zoo, llama: Path, tmp_path: Path) -> None:
    names = [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(4)]
    names += [f"v_head.{letter}" for letter in "abcdef"]
    report = zoo.add("model", with_tensors(llama, tmp_path / "more", names))
    (note,) = report.notes
    assert "model.layers.*.self_attn.rotary_emb.inv_freq (4)" in note
    assert note.endswith("and 2 more (10 in all)")
    assert zoo.add("plain", llama).notes == ()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("model.layers.0.self_attn.q_proj.bias", "unknown tensor"),
        ("model.layers.0.self_attn.q_norm.weight", "unknown tensor"),
        ("lm_head.bias", "unknown tensor"),
        ("model.layers.9.mlp.up_proj.weight", "unknown tensor"),
        ("score.weight", "scores texts"),
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "merge_and_unload"),
        ("model.layers.0.mlp.experts.0.w1.weight", "mixture of experts"),
        ("model.vision_tower.patch.weight", "reads images"),
    ],
)
def test_what_might_matter_is_refused(
    zoo: Zoo, llama: Path, tmp_path: Path, name: str, cause: str
) -> None:
    with pytest.raises(CheckpointError, match=cause):
        zoo.add("model", with_tensors(llama, tmp_path / "more", [name]))


@pytest.mark.parametrize(
    ("prefix", "cause"),
    [
        ("_orig_mod.", "compiled model"),
        ("module.", "data-parallel"),
        ("base_model.model.", "not merged"),
        ("_fsdp_wrapped_module.", "FSDP"),
    ],
)
def test_wrapped_models_are_named(
    zoo: Zoo, llama: Path, tmp_path: Path, prefix: str, cause: str
) -> None:
    wrapped = Path(shutil.copytree(llama, tmp_path / "wrapped"))
    tensors = load_file(llama / WEIGHTS)
    save_file({prefix + name: value for name, value in tensors.items()}, wrapped / WEIGHTS)
    with pytest.raises(CheckpointError, match=f"is missing.*{cause}"):
        zoo.add("model", wrapped)


def indexed(source: Path, target: Path, more: list[str]) -> Path:
    """A copy of a checkpoint as one shard whose index names more than lies in it."""
    shutil.copytree(source, target)
    shard = "model-00001-of-00001.safetensors"
    (target / WEIGHTS).rename(target / shard)
    names = [*load_file(target / shard), *more]
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, shard)}
    (target / INDEX).write_text(json.dumps(index))
    return target


def test_an_index_may_name_the_head_of_tied_weights(zoo: Zoo, tied: Path, tmp_path: Path) -> None:
    report = zoo.add("model", indexed(tied, tmp_path / "indexed", ["lm_head.weight"]))
    note, *_ = report.notes
    assert "that are in no shard: lm_head.weight" in note
    zoo.add("plain", tied)
    assert zoo.layers("model") == zoo.layers("plain")


@pytest.mark.parametrize("name", ["model.norm.bias", "model.layers.0.mlp.up_proj.bias"])
def test_an_index_may_name_nothing_else_that_is_in_no_shard(
    zoo: Zoo, tied: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(CheckpointError, match="is not in"):
        zoo.add("model", indexed(tied, tmp_path / "indexed", [name]))


def test_an_untied_head_that_is_in_no_shard_is_missing(
    zoo: Zoo, llama: Path, tmp_path: Path
) -> None:
    folder = indexed(llama, tmp_path / "indexed", [])
    shard = folder / "model-00001-of-00001.safetensors"
    tensors = load_file(shard)
    del tensors["lm_head.weight"]
    save_file(tensors, shard)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight' is missing"):
        zoo.add("model", folder)
