"""LoRA adapters: what the zoo keeps is what PEFT computes with."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from blockllm.core import BiasTarget, Chain, LoraTarget, NormTarget, Target, Tensor
from blockllm.errors import (
    AdapterMismatch,
    CheckpointError,
    UnknownModel,
    UnsafeCheckpoint,
    UnsupportedModel,
    ZooError,
)
from blockllm.zoo import Zoo
from blockllm.zoo.adapters.lora_config import read_lora_config
from blockllm.zoo.adapters.options import ignored_note
from blockllm.zoo.adapters.patterns import is_quick
from blockllm.zoo.families.names import tensor_name
from blockllm.zoo.settings_reader import SettingsReader
from tests.makers import make_checkpoint, make_lora
from tests.zoo.conftest import contents, read_tensor

Parts = dict[str, torch.Tensor | float]


def positions(chain: Chain) -> list[tuple[dict[str, Tensor], dict[str, tuple[Target, ...]]]]:
    """The tensors of each layer of a chain, halves joined, with what the model adds to it."""
    found: list[tuple[dict[str, Tensor], dict[str, tuple[Target, ...]]]] = []
    for entry in chain.entries:
        for index, layer in enumerate(entry.block.layers):
            prefix = f"{index}."
            targets = entry.delta.targets if entry.delta else {}
            own = {k.removeprefix(prefix): t for k, t in targets.items() if k.startswith(prefix)}
            if getattr(layer.function, "part", "") == "mlp":  # behind its attention
                found[-1] = ({**found[-1][0], **layer.tensors}, {**found[-1][1], **own})
            else:
                found.append((layer.tensors, own))
    return found


def load(zoo: Zoo, tensor: Tensor) -> torch.Tensor:
    assert tensor.dtype == "F32"
    data = bytearray(read_tensor(zoo, tensor))
    return torch.frombuffer(data, dtype=torch.float32).reshape(tensor.shape)


def served_weights(zoo: Zoo, name: str) -> dict[str, torch.Tensor]:
    """Weights and biases by Hugging Face name, updates added in float64."""
    layers = positions(zoo.chain(name))
    weights: dict[str, torch.Tensor] = {}
    for position, (tensors, targets) in enumerate(layers):
        for key, tensor in tensors.items():
            full = tensor_name(position, key, len(layers) - 2)
            weights[full] = load(zoo, tensor).double()
        for module, group in targets.items():
            key = "weight" if module in ("embed", "head") else f"{module}.weight"
            full = tensor_name(position, key, len(layers) - 2)
            # an own bias stands for the base's, to which lora's is added
            for target in sorted(group, key=lambda target: isinstance(target, LoraTarget)):
                _apply(zoo, weights, full, target)
    return weights


def _apply(zoo: Zoo, weights: dict[str, torch.Tensor], name: str, target: Target) -> None:
    bias = name.replace(".weight", ".bias")
    if isinstance(target, BiasTarget):
        weights[bias] = load(zoo, target.bias).double()
    elif isinstance(target, NormTarget):
        weights[name] = load(zoo, target.weight).double()
    else:
        assert isinstance(target, LoraTarget)
        update = target.scale * load(zoo, target.b).double() @ load(zoo, target.a).double()
        weights[name] = weights[name] + (update.T if "embed_tokens" in name else update)
        if target.bias:
            extra = target.scale * load(zoo, target.bias).double()
            weights[bias] = weights.get(bias, torch.zeros(())) + extra


def peft_weights(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The same from a real PEFT model, module by module."""
    import peft
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        model = peft.PeftModel.from_pretrained(model, adapter).get_base_model()
    weights: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        plain = re.sub(r"\.(base_layer|modules_to_save\.default)", "", name)
        if ".original_module" in name or "lora_" in name:
            continue
        if hasattr(module, "get_delta_weight"):
            weights[f"{plain}.weight"] = module.base_layer.weight.data.double()
            weights[f"{plain}.weight"] += _peft_update(module)
            _add_bias(weights, f"{plain}.bias", module)
        elif not hasattr(module, "modules_to_save"):
            for key, parameter in module.named_parameters(recurse=False):
                weights.setdefault(f"{plain}.{key}", parameter.data.double())
    return weights


def _peft_update(module: Any) -> torch.Tensor:
    scale = module.scaling["default"]
    if "default" in module.lora_embedding_A:
        b, a = module.lora_embedding_B["default"], module.lora_embedding_A["default"]
        return (scale * b.data.double() @ a.data.double()).T
    b, a = module.lora_B["default"].weight, module.lora_A["default"].weight
    return scale * b.data.double() @ a.data.double()


def _add_bias(weights: dict[str, torch.Tensor], name: str, module: Any) -> None:
    own = getattr(module.base_layer, "bias", None)
    if own is not None:
        weights[name] = own.data.double()
    extra = getattr(module.lora_B["default"], "bias", None) if module.lora_B else None
    if extra is not None:
        update = module.scaling["default"] * extra.data.double()
        weights[name] = weights.get(name, torch.zeros(())) + update


EMBED, HEAD = "embed_tokens", "lm_head"
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-linear": {"target_modules": "all-linear", "r": 3},
    "rank 1": {"r": 1, "lora_alpha": 7},
    "some layers": {"layers_to_transform": [1]},
    "rslora": {"use_rslora": True},
    "patterns": {
        "rank_pattern": {"q_proj": 2, "layers.1.self_attn.v_proj": 6},
        "alpha_pattern": {r"model\.layers\.\d\.self_attn\.v_proj": 3, "^model.layers.0.*q_proj": 5},
    },
    "patterns, rslora": {"rank_pattern": {"v_proj": 9}, "use_rslora": True},
    "biases": {"bias": "all", "target_modules": ["q_proj", "o_proj"]},
    "lora_only biases": {"bias": "lora_only"},
    "lora_bias": {"lora_bias": True, "target_modules": ["q_proj", "down_proj"]},
    "embedding and head": {"target_modules": [EMBED, HEAD, "up_proj"]},
    "embedding": {"target_modules": [EMBED]},
    "head": {"target_modules": [HEAD]},
    "saved norms": {"modules_to_save": ["input_layernorm", "norm"]},
    "saved mlp": {"modules_to_save": ["mlp"]},
    "saved head": {"modules_to_save": [HEAD]},
    "saved embedding": {"modules_to_save": [EMBED]},
    "saved both": {"modules_to_save": [EMBED, HEAD]},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight", "up_proj.weight"]},
    "patterns of parameters": {
        "target_modules": ["v_proj"],
        "target_parameters": ["self_attn.q_proj.weight"],
        "rank_pattern": {"q_proj": 2, "q_proj.weight": 3, "v_proj": 6},
        "alpha_pattern": {"q_proj.weight": 5},
    },
    "mica": {"init_lora_weights": "mica"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "velora": {"velora_config": {"num_groups": 2}},
    "monteclora": {"monteclora_config": {"num_samples": 2}},
    "replicated layers": {"layer_replication": [[0, 2], [1, 2], [0, 1]]},
    "tying embedding": {"target_modules": [EMBED], "ensure_weight_tying": True},
    "tying saved": {"modules_to_save": [EMBED], "ensure_weight_tying": True},
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    sizes = {"num_hidden_layers": 2, "attention_bias": True}
    untied = make_checkpoint(root / "untied", **sizes, tokenizer=True)
    return {
        "untied": untied,
        "tied": make_checkpoint(root / "tied", tie_word_embeddings=True, **sizes),
    }


@pytest.mark.parametrize("kind", ["untied", "tied"])
@pytest.mark.parametrize("case", CASES)
def test_weights_equal_pefts(
    zoo: Zoo, tmp_path: Path, bases: dict[str, Path], kind: str, case: str
) -> None:
    adapter = make_lora(bases[kind], tmp_path / "adapter", **CASES[case])
    zoo.add("base", bases[kind])
    before = zoo.card("base")
    report = zoo.add("adapter", adapter, base="base")
    served, expected = served_weights(zoo, "adapter"), peft_weights(bases[kind], adapter)
    expected.setdefault("lm_head.weight", expected["model.embed_tokens.weight"])
    assert served.keys() == expected.keys()
    for name in served:
        torch.testing.assert_close(served[name], expected[name], rtol=0, atol=1e-12, msg=name)
    saved = sum(t.numel() * 4 for t in load_file(adapter / "adapter_model.safetensors").values())
    assert report.stored_bytes <= saved + 64 * 30
    card = zoo.card("adapter")
    assert (card.kind, card.parent, card.family) == ("lora", "base", "llama")
    assert zoo.card("base").total_bytes == before.total_bytes
    assert zoo.verify().is_sound


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3"])
def test_other_families(zoo: Zoo, tmp_path: Path, family: str) -> None:
    base = make_checkpoint(tmp_path / "base", family, num_hidden_layers=2)
    adapter = make_lora(base, tmp_path / "adapter", target_modules="all-linear")
    zoo.add("base", base)
    zoo.add("adapter", adapter)  # found by the last part of the path it was trained from
    served, expected = served_weights(zoo, "adapter"), peft_weights(base, adapter)
    assert served.keys() == expected.keys()
    for name in served:
        torch.testing.assert_close(served[name], expected[name], rtol=0, atol=1e-12)


def test_delta_ends_cut_blocks(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("base", llama)
    adapter = make_lora(llama, tmp_path / "adapter", layers_to_transform=[1, 2])
    zoo.add("adapter", adapter, base="base")
    chain = zoo.chain("adapter")
    covered = [(len(entry.block.layers), entry.delta is not None) for entry in chain.entries]
    assert covered == [(1, False), (1, False), (2, True), (1, False), (1, False)]
    assert [e.block for e in zoo.chain("base").entries] == [e.block for e in chain.entries]
    delta = chain.entries[2].delta
    assert delta is not None
    expected = {f"{i}.self_attn.{name}" for i in (0, 1) for name in ("q_proj", "v_proj")}
    assert set(delta.targets) == expected
    zoo.remove("adapter")
    assert len(zoo.chain("base").entries) == 3


def test_equal_adapters_share_bytes_and_delta_ids(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("base", llama)
    adapter = make_lora(llama, tmp_path / "adapter")
    zoo.add("one", adapter, base="base")
    assert zoo.add("two", adapter, base="base").stored_bytes == 0
    deltas = [[e.delta and e.delta.id for e in zoo.chain(n).entries] for n in ("one", "two")]
    assert deltas[0] == deltas[1]


def test_adapter_on_a_full_fine_tune(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    tuned = make_checkpoint(
        tmp_path / "tuned", seed=3, copy_layers_from=llama, copied_layers=(0, 1)
    )
    adapter = make_lora(tuned, tmp_path / "adapter")
    for name, path in {"base": llama, "tuned": tuned, "adapter": adapter}.items():
        zoo.add(name, path)
    assert zoo.chain("adapter").parent == "tuned"
    blocks = [entry.block.id for entry in zoo.chain("tuned").entries]
    assert [entry.block.id for entry in zoo.chain("adapter").entries] == blocks


def test_a_base_with_adapters_cannot_be_removed(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("base", llama)
    adapter = make_lora(llama, tmp_path / "adapter")
    zoo.add("adapter", adapter, base="base")
    with pytest.raises(ZooError, match="adapter"):
        zoo.remove("base")
    with pytest.raises(ZooError, match="takes no base"):
        zoo.add("third", llama, base="base")


def test_assets_fall_back_to_the_base(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("base", llama)
    adapter = make_lora(llama, tmp_path / "adapter")
    zoo.add("bare", adapter, base="base")
    for file in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert zoo.asset("bare", file) == zoo.asset("base", file) is not None
    (adapter / "tokenizer_config.json").write_text('{"chat_template": "own"}')
    zoo.add("own", adapter, base="base")
    assert zoo.asset("own", "tokenizer_config.json") != zoo.asset("base", "tokenizer_config.json")
    assert zoo.asset("own", "tokenizer.json") == zoo.asset("base", "tokenizer.json")
    assert zoo.asset("own", "chat_template.jinja") is None


def test_base_is_guessed(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    adapter = make_lora(llama, tmp_path / "adapter")
    zoo.add("another", make_checkpoint(tmp_path / "another"))
    with pytest.raises(UnknownModel, match="candidates: another"):
        zoo.add("adapter", adapter)
    with pytest.raises(UnknownModel, match="nobody"):
        zoo.add("adapter", adapter, base="nobody")
    zoo.add("unlike", llama)
    assert zoo.add("adapter", adapter).num_blocks == 3  # the base was added from the same path
    assert zoo.chain("adapter").parent == "unlike"
    _change(adapter, base_model_name_or_path="someone/another")
    zoo.add("renamed", adapter)
    assert zoo.chain("renamed").parent == "another"


REFUSED: dict[str, dict[str, Any]] = {
    "POLY": {"peft_type": "POLY"},
    "DoRA with lora_bias": {"use_dora": True, "lora_bias": True},
    "pissa": {"init_lora_weights": "pissa_niter_16"},
    "olora": {"init_lora_weights": "olora"},
    "corda": {"init_lora_weights": "corda"},
    "loftq": {"init_lora_weights": "loftq"},
    "lora_ga": {"init_lora_weights": "lora_ga"},
    "aLoRA changes the tokens": {"alora_invocation_tokens": [1]},
    "quantised by GPTQ": {"use_qalora": True},
    "mixes several adapters": {"arrow_config": {"top_k": 1}},
    "smallest singular values": {"kasa_config": {"beta": 1e-4}},
    "block-diagonal": {"use_bdlora": {"nblocks": 2}},
    "only parts of a fused": {"enable_lora": [True, False, True]},
    "option 'token_indices' is not supported for LORA": {"token_indices": [1]},
    "a classifier mixes its adapters": {"peft_type": "XLORA"},
    "too complex": {"rank_pattern": {"(a+)+b": 3}},
}


@pytest.fixture
def added(zoo: Zoo, tmp_path: Path, llama: Path) -> tuple[Zoo, Path]:
    """A zoo with `base`, and the folder of a fitting adapter."""
    zoo.add("base", llama)
    return zoo, make_lora(llama, tmp_path / "adapter")


@pytest.mark.parametrize("option", REFUSED)
def test_refused_options(added: tuple[Zoo, Path], tmp_path: Path, option: str) -> None:
    zoo, adapter = added
    _change(adapter, **REFUSED[option])
    before = contents(tmp_path / "zoo")
    with pytest.raises(UnsupportedModel, match=option):
        zoo.add("adapter", adapter, base="base")
    assert contents(tmp_path / "zoo") == before


def test_options_that_peft_drops(added: tuple[Zoo, Path]) -> None:
    zoo, adapter = added
    _change(adapter, from_the_future={"a": 1}, lora_ptype=3, unset=None)
    report = zoo.add("adapter", adapter, base="base")
    note = "adapter_config.json: ignored, as peft does: from_the_future, lora_ptype"
    assert report.notes == (note,)


def test_every_option_of_peft_is_classified() -> None:
    """None is dropped as unknown, and LoRA's are each read, harmless or refused with a reason."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    options = {
        kind: {field.name: 1 for field in dataclasses.fields(config)}
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
    }
    for kind, names in options.items():
        assert ignored_note(SettingsReader(names, kind)) == ()
    for name in set(options["LORA"]) - {"peft_type"}:
        reader = SettingsReader({"r": 1, "lora_alpha": 1, name: 1, "peft_type": "LORA"}, "")
        try:
            read_lora_config(reader)
        except CheckpointError as error:
            assert "for LORA adapters" not in str(error), name


@pytest.mark.parametrize(
    "values",
    [
        {"r": 0},
        {"r": "4"},
        {"lora_alpha": None},
        {"rank_pattern": {"(": 2}},
        {"rank_pattern": {"q_proj": 0}},
        {"alpha_pattern": [1]},
        {"layer_replication": [[0, 5]]},
        {"layer_replication": [[1, 1]]},
        {"layer_replication": [[-1, 1]]},
        {"layer_replication": [[0, 4]] * 300},
        {"layer_replication": [0, 1]},
        {"peft_type": None},
        {"use_rslora": "yes"},
        {"r": 8},
        {"lora_bias": True},
        {"use_dora": True},
        {"lora_alpha": float("nan")},
    ],
    ids=str,
)
def test_wrong_settings(added: tuple[Zoo, Path], tmp_path: Path, values: dict[str, Any]) -> None:
    zoo, adapter = added
    _change(adapter, **values)
    before = contents(tmp_path / "zoo")
    with pytest.raises(CheckpointError):
        zoo.add("adapter", adapter, base="base")
    assert contents(tmp_path / "zoo") == before


def _rename(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {name.replace(old, new): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {},
        lambda t: _rename(t, "base_model.model.", ""),
        lambda t: _rename(t, "layers.3.", "layers.4."),
        lambda t: _rename(t, "layers.3.", "layers.-1."),
        lambda t: _rename(t, "v_proj", "w_proj"),
        lambda t: _rename(t, "self_attn.q_proj", "input_layernorm"),
        lambda t: {name: tensor for name, tensor in t.items() if "lora_B" not in name},
        lambda t: {name: tensor.repeat(1, 2) for name, tensor in t.items()},
        lambda t: {**t, "base_model.model.lm_head.weight": torch.zeros(97, 32)},
        lambda t: {**t, "base_model.model.lm_head.bias": torch.zeros(96)},
        lambda t: {**t, "base_model.model.model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
    ],
)
def test_tensors_that_do_not_fit(added: tuple[Zoo, Path], tmp_path: Path, change: Any) -> None:
    zoo, adapter = added
    file = adapter / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    before = contents(tmp_path / "zoo")
    with pytest.raises(AdapterMismatch):
        zoo.add("adapter", adapter, base="base")
    assert contents(tmp_path / "zoo") == before


def test_adapter_for_another_base(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("narrow", make_checkpoint(tmp_path / "narrow", hidden_size=16, head_dim=8))
    with pytest.raises(AdapterMismatch, match="expected shape"):
        zoo.add("adapter", make_lora(llama, tmp_path / "adapter"), base="narrow")


def test_pickled_adapter(added: tuple[Zoo, Path]) -> None:
    zoo, adapter = added
    shutil.move(adapter / "adapter_model.safetensors", adapter / "adapter_model.bin")
    with pytest.raises(UnsafeCheckpoint, match="safe_serialization"):
        zoo.add("adapter", adapter, base="base")


def _change(adapter: Path, **values: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


QUICK = [
    "q_proj", "layers.0.self_attn.q_proj", r".*\.q_proj", r"(.*\.)?q_proj", "^model.*(q|k)_proj$",
    r"model\.layers\.[0-3]\..*q_proj", r"layers\.(0|1|2)\..*", r"layers\.\d+\.mlp\..*_proj",
    "(?:q|k|v)_proj", r"layers\.[0-9]{1,2}\.mlp",
]  # fmt: skip
SLOW = [
    "(a+)+", "(a|aa)+$", "((a|a)*)*b", "(.*a){20}", ".*.*.*.*x", r"(\w+)\1", "(?=a)b", "(a*)*",
    "(a?){50}", "((a)|b)*", "(x+x+)+y", "(?i)a", ")",
]  # fmt: skip


@pytest.mark.parametrize("pattern", QUICK)
def test_patterns_that_people_write_are_quick(pattern: str) -> None:
    assert is_quick(pattern)


@pytest.mark.parametrize("pattern", SLOW)
def test_patterns_that_some_names_make_slow_are_refused(pattern: str) -> None:
    assert not is_quick(pattern)


@given(st.text("ab.*+?|(){}1,\\d[]", max_size=12), st.text("ab.", max_size=60))
def test_quick_patterns_are_quick(pattern: str, name: str) -> None:
    assume(is_quick(pattern))
    try:
        compiled = re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError):
        return
    start = time.process_time()
    compiled.match(name)
    assert time.process_time() - start < 0.5
