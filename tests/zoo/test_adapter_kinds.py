"""Adapters of every kind: where they touch their base, what they share, what is refused."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.core import (
    BiasTarget,
    BottleneckTarget,
    DoraTarget,
    GainTarget,
    LoraTarget,
    NormTarget,
    PrefixTarget,
    PromptTarget,
    Target,
    Tensor,
    target_tensors,
)
from blockllm.errors import AdapterMismatch, UnsafeCheckpoint, UnsupportedModel, ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.assemble import NewTarget
from tests.makers import (
    HOULSBY,
    PFEIFFER,
    make_adapter,
    make_bitfit,
    make_bottleneck,
    make_checkpoint,
    make_lora,
)
from tests.zoo.conftest import contents, read_tensor

CAUSAL = {"task_type": "CAUSAL_LM"}
IA3 = peft.IA3Config(
    target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL
)
PREFIX = peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL)
PROMPT = peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL)
LN = peft.LNTuningConfig(target_modules=["input_layernorm", "norm"], **CAUSAL)
DORA = peft.LoraConfig(r=2, use_dora=True, target_modules=["v_proj"], **CAUSAL)

MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "dora": lambda base, path: make_adapter(base, path, DORA),
    "ia3": lambda base, path: make_adapter(base, path, IA3),
    "ln": lambda base, path: make_adapter(base, path, LN),
    "bitfit": lambda base, path: make_bitfit(base, path, ["q_proj", "lm_head"]),
    "prefix": lambda base, path: make_adapter(base, path, PREFIX),
    "prompt": lambda base, path: make_adapter(base, path, PROMPT),
    "bottleneck": lambda base, path: make_bottleneck(base, path, HOULSBY),
}
PLACES: dict[str, dict[str, dict[str, type]]] = {
    "dora": {"layer": {"self_attn.v_proj": DoraTarget}},
    "ia3": {"layer": {"self_attn.k_proj": GainTarget, "mlp.down_proj": GainTarget}},
    "ln": {"layer": {"input_layernorm": NormTarget}, "head": {"norm": NormTarget}},
    "bitfit": {"layer": {"self_attn.q_proj": BiasTarget}, "head": {"head": BiasTarget}},
    "prefix": {"layer": {"self_attn": PrefixTarget}},
    "prompt": {"embed": {"embed": PromptTarget}},
    "bottleneck": {"layer": {"self_attn": BottleneckTarget, "mlp": BottleneckTarget}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("base"), num_hidden_layers=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    """One adapter of each kind; tests must not change them."""
    root = tmp_path_factory.mktemp("adapters")
    return {kind: make(base, root / kind) for kind, make in MAKERS.items()}


def array(zoo: Zoo, tensor: Tensor) -> np.ndarray:
    return np.frombuffer(read_tensor(zoo, tensor), np.float32).reshape(tensor.shape)


def alone(zoo: Zoo, name: str, position: int, module: str) -> Target:
    (target,) = zoo.targets(name)[position][module]
    return target


@pytest.mark.parametrize("kind", MAKERS)
def test_the_base_stays_shared(zoo: Zoo, base: Path, folders: dict[str, Path], kind: str) -> None:
    zoo.add("base", base)
    report = zoo.add("tuned", folders[kind], base="base")
    assert zoo.layers("tuned") == zoo.layers("base")
    card = zoo.card("tuned")
    assert (card.kind, card.parent, card.exact) == (kind, "base", True)
    assert card.num_shared_blocks == card.num_blocks
    (file,) = folders[kind].glob("*.safetensors")
    saved = sum(tensor.numel() * 4 for tensor in load_file(file).values())
    assert card.own_bytes <= saved
    assert report.stored_bytes <= saved + 64 * 40
    expected = {
        position: PLACES[kind][place]
        for position, place in enumerate(("embed", "layer", "layer", "head"))
        if place in PLACES[kind]
    }
    found = {
        position: {module: type(target) for module, (target,) in modules.items()}
        for position, modules in zoo.targets("tuned").items()
    }
    assert found == expected
    deltas = {entry.delta.id for entry in zoo.chain("tuned").entries if entry.delta}
    assert deltas and not any(entry.delta for entry in zoo.chain("base").entries)
    assert zoo.verify().is_sound


def test_prefix_tensors_equal_what_peft_computes(
    zoo: Zoo, base: Path, folders: dict[str, Path]
) -> None:
    import transformers

    zoo.add("base", base)
    zoo.add("prefix", folders["prefix"], base="base")
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft asks transformers in words that go away
        cache = peft.PeftModel.from_pretrained(model, folders["prefix"]).get_prompt(1)
    for index, layer in enumerate(cache.layers):
        target = alone(zoo, "prefix", index + 1, "self_attn")
        assert isinstance(target, PrefixTarget)
        for tensor, states in ((target.keys, layer.keys), (target.values, layer.values)):
            expected = states[0].transpose(0, 1).detach().numpy()  # [tokens, kv_heads, head_dim]
            np.testing.assert_array_equal(array(zoo, tensor), expected)
    assert zoo.chain("prefix").num_virtual == 3


def test_gains(zoo: Zoo, base: Path, folders: dict[str, Path]) -> None:
    zoo.add("base", base)
    zoo.add("ia3", folders["ia3"], base="base")
    saved = load_file(folders["ia3"] / "adapter_model.safetensors")
    prefix = "base_model.model.model.layers.1."
    for module, side in (("self_attn.k_proj", "output"), ("mlp.down_proj", "input")):
        target = alone(zoo, "ia3", 2, module)
        assert isinstance(target, GainTarget) and target.side == side
        expected = saved[f"{prefix}{module}.ia3_l"].flatten().numpy()
        np.testing.assert_array_equal(array(zoo, target.gain), expected)


def test_whole_tensors_join_a_layer_that_changes_anyway(
    zoo: Zoo, tmp_path: Path, base: Path
) -> None:
    zoo.add("base", base)
    saved = ["mlp", "post_attention_layernorm"]
    make_lora(base, tmp_path / "lora", modules_to_save=saved, layers_to_transform=[1])
    zoo.add("lora", tmp_path / "lora", base="base")
    kinds = {t for modules in zoo.targets("lora").values() for t in modules}
    assert kinds == {"self_attn.q_proj", "self_attn.v_proj"}
    assert zoo.layers("lora")[1] != zoo.layers("base")[1]


BOTTLENECKS: dict[str, dict[str, Any]] = {
    "is_parallel": {"is_parallel": True},
    "use_gating": {"use_gating": True},
    "phm_layer": {"phm_layer": True},
    "ln_before": {"ln_before": True},
    "ln_after": {"ln_after": True},
    "inv_adapter": {"inv_adapter": "nice"},
    "cross_adapter": {"cross_adapter": True},
    "architecture": {"architecture": "prefix_tuning"},
    "scaling 'learned'": {"scaling": "learned"},
    "residual_before_ln 'post_add'": {"residual_before_ln": "post_add"},
    "non_linearity 'mish'": {"non_linearity": "mish"},
    "combination": {"original_ln_after": False},
    "this combination": {"original_ln_before": True, "residual_before_ln": False},
    "reduction_factor": {"reduction_factor": {"0": 4}},
    "version_2": {"version_2": 1},
}


@pytest.mark.parametrize("option", BOTTLENECKS)
def test_refused_bottlenecks(
    zoo: Zoo, tmp_path: Path, base: Path, folders: dict[str, Path], option: str
) -> None:
    folder = Path(shutil.copytree(folders["bottleneck"], tmp_path / "copy"))
    document = json.loads((folder / "adapter_config.json").read_text())
    document["config"] |= BOTTLENECKS[option]
    (folder / "adapter_config.json").write_text(json.dumps(document))
    zoo.add("base", base)
    before = contents(tmp_path / "zoo")
    with pytest.raises(UnsupportedModel, match=option):
        zoo.add("tuned", folder, base="base")
    assert contents(tmp_path / "zoo") == before


def test_pfeiffer_reads_the_stream(zoo: Zoo, tmp_path: Path, base: Path) -> None:
    zoo.add("base", base)
    options = {**PFEIFFER, "leave_out": [0], "scaling": 2.0, "reduction_factor": 8}
    zoo.add("tuned", make_bottleneck(base, tmp_path / "pfeiffer", options), base="base")
    assert list(zoo.targets("tuned")) == [2]
    target = alone(zoo, "tuned", 2, "mlp")
    assert isinstance(target, BottleneckTarget)
    assert (target.reads, target.activation, target.scale) == ("stream", "relu", 2.0)
    assert target.down.shape == (4, 32)
    qwen = make_checkpoint(tmp_path / "qwen", "qwen3", num_hidden_layers=2)
    zoo.add("qwen", qwen)
    with pytest.raises(UnsupportedModel, match="qwen3"):
        zoo.add("other", make_bottleneck(qwen, tmp_path / "other", PFEIFFER), base="qwen")


def test_files_of_adapterhub(zoo: Zoo, tmp_path: Path, base: Path) -> None:
    zoo.add("base", base)
    folder = make_bottleneck(base, tmp_path / "tuned", HOULSBY)
    assert zoo.add("guessed", folder).notes == ()  # its config names the base
    assert zoo.chain("guessed").parent == "base"
    (folder / "head_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match="prediction head"):
        zoo.add("tuned", folder, base="base")
    (folder / "head_config.json").unlink()
    (folder / "adapter.safetensors").rename(folder / "pytorch_adapter.bin")
    with pytest.raises(UnsafeCheckpoint, match="use_safetensors=True"):
        zoo.add("tuned", folder, base="base")


def test_gains_that_others_read_too(zoo: Zoo, tmp_path: Path, base: Path) -> None:
    zoo.add("base", base)
    config = peft.IA3Config(target_modules=["up_proj"], feedforward_modules=["up_proj"], **CAUSAL)
    with pytest.raises(UnsupportedModel, match=r"mlp\.up_proj is not supported"):
        zoo.add("ia3", make_adapter(base, tmp_path / "ia3", config), base="base")


MEETINGS = {
    ("dora", "dora"): "layer 0, self_attn.v_proj: dora, dora cannot be stacked",
    ("ia3", "ia3"): "cannot be stacked",
    ("ln", "ln"): "cannot be stacked",
    ("bitfit", "bitfit"): "self_attn.q_proj: bias, bias cannot be stacked",
    ("prefix", "prefix"): "layer 0, self_attn: prefix, prefix cannot be stacked",
    ("prompt", "prompt"): "embed: prompt, prompt cannot be stacked",
    ("prefix", "prompt"): "a prefix and a prompt cannot be stacked",
    ("bottleneck", "bottleneck"): None,
    ("dora", "ia3"): None,
    ("prefix", "bottleneck"): None,
    ("bitfit", "dora"): None,
}


@pytest.mark.parametrize("pair", MEETINGS, ids="-".join)
def test_stacks(
    zoo: Zoo, tmp_path: Path, base: Path, folders: dict[str, Path], pair: tuple[str, str]
) -> None:
    zoo.add("base", base)
    zoo.add("below", folders[pair[0]], base="base")
    problem = MEETINGS[pair]
    if problem is None:
        zoo.add("above", folders[pair[1]], base="below")
        assert (zoo.card("above").kind, zoo.card("above").parent) == ("stack", "below")
        own, both = zoo.targets("below"), zoo.targets("above")
        for position, modules in own.items():
            for module, group in modules.items():
                assert both[position][module][: len(group)] == group
        with pytest.raises(ZooError, match="above"):
            zoo.remove("below")
        return
    before = contents(tmp_path / "zoo")
    with pytest.raises(AdapterMismatch, match=problem):
        zoo.add("above", folders[pair[1]], base="below")
    assert contents(tmp_path / "zoo") == before


def test_two_low_ranks_and_their_scales(zoo: Zoo, tmp_path: Path, base: Path) -> None:
    zoo.add("base", base)
    adapter = make_lora(base, tmp_path / "adapter", r=4, lora_alpha=8)
    (adapter / "tokenizer_config.json").write_text("{}")
    zoo.add("one", adapter, base="base")
    zoo.add("two", adapter, base="one", scale=-0.25)
    targets = zoo.targets("two")[1]["self_attn.q_proj"]
    assert [t.scale for t in targets if isinstance(t, LoraTarget)] == [2.0, -0.5]
    assert target_tensors(targets[0]) == target_tensors(targets[1])
    (adapter / "tokenizer_config.json").unlink()
    zoo.add("three", adapter, base="two")
    assert zoo.asset("three", "tokenizer_config.json") == zoo.asset("one", "tokenizer_config.json")
    assert zoo.card("three").own_bytes == 0


def test_scales_that_are_refused(zoo: Zoo, base: Path, folders: dict[str, Path]) -> None:
    with pytest.raises(ZooError, match="has no scale"):
        zoo.add("base", base, scale=2.0)
    zoo.add("base", base)
    for kind in ("dora", "ia3", "prefix", "bitfit"):
        with pytest.raises(ZooError, match=f"{kind} has not"):
            zoo.add("tuned", folders[kind], base="base", scale=2.0)
    for scale in (math.nan, math.inf):
        with pytest.raises(ZooError, match="finite"):
            zoo.add("tuned", folders["bottleneck"], base="base", scale=scale)
    zoo.add("tuned", folders["bottleneck"], base="base", scale=2.0)
    target = alone(zoo, "tuned", 1, "mlp")
    assert isinstance(target, BottleneckTarget) and target.scale == 2.0


def test_replacing_what_an_adapter_below_changes(zoo: Zoo, tmp_path: Path, base: Path) -> None:
    zoo.add("base", base)
    below = make_lora(base, tmp_path / "below", target_modules=["up_proj", "lm_head"])
    zoo.add("below", below, base="base")
    zoo.add("twice", below, base="below")  # its copy of the head is the base's
    above = make_lora(base, tmp_path / "above", modules_to_save=["mlp"], seed=2)
    with pytest.raises(AdapterMismatch, match=r"layer 0, mlp\.up_proj: the base changes it"):
        zoo.add("above", above, base="below")


def test_on_compressed_fine_tunes(zoo: Zoo, tmp_path: Path, base: Path) -> None:
    """Additive kinds ride on a compressed difference; those that rescale a linear do not."""
    zoo.add("base", base)
    parts = {"codes": np.zeros((16, 4), np.uint8), "scales": np.ones((16, 1), np.float32)}
    coded = NewTarget("coded", parts, {"bits": 1})
    targets = {1: {"self_attn.v_proj": (coded,)}}
    zoo.assemble("small", "base", zoo.layers("base"), targets=targets, parent="base")
    zoo.add("lora", make_lora(base, tmp_path / "lora"), base="small")
    with pytest.raises(AdapterMismatch, match=r"v_proj: coded, dora cannot"):
        zoo.add("dora", MAKERS["dora"](base, tmp_path / "dora"), base="small")


@pytest.mark.parametrize("kind", MAKERS)
def test_int8_bases(zoo: Zoo, base: Path, folders: dict[str, Path], kind: str) -> None:
    zoo.add("rounded", base, format="int8")
    zoo.add("tuned", folders[kind], base="rounded")
    card = zoo.card("tuned")
    assert (card.kind, card.format, card.exact) == (kind, "int8", False)
    assert zoo.layers("tuned") == zoo.layers("rounded")


def test_another_base(zoo: Zoo, tmp_path: Path, folders: dict[str, Path]) -> None:
    zoo.add("narrow", make_checkpoint(tmp_path / "narrow", hidden_size=16, num_hidden_layers=2))
    zoo.add("short", make_checkpoint(tmp_path / "short", num_hidden_layers=1))
    before = contents(tmp_path / "zoo")
    for kind, folder in folders.items():
        for name in ("narrow", "short"):
            if (kind, name) != ("prompt", "short"):
                with pytest.raises(AdapterMismatch):
                    zoo.add("tuned", folder, base=name)
    assert contents(tmp_path / "zoo") == before


def test_virtual_tokens_leave_room(zoo: Zoo, tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base", num_hidden_layers=1, max_position_embeddings=4)
    zoo.add("base", base)
    with pytest.raises(AdapterMismatch, match="no room in a context of 4"):
        zoo.add("prompt", MAKERS["prompt"](base, tmp_path / "prompt"), base="base")


@pytest.mark.parametrize("name", ["model.norm.bias", "model.embed_tokens.bias", "a.weight"])
def test_biases_without_a_linear(zoo: Zoo, tmp_path: Path, base: Path, name: str) -> None:
    folder = make_bitfit(base, tmp_path / "bitfit", ["q_proj"])
    save_file({name: torch.zeros(32)}, folder / "adapter_model.safetensors")
    zoo.add("base", base)
    with pytest.raises(AdapterMismatch):
        zoo.add("tuned", folder, base="base")
