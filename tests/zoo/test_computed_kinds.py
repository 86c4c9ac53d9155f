"""Kinds that are computed when added: what they need, what is refused, and over which bases."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from peft.tuners.boft.layer import BOFTLayer
from peft.tuners.waveft.layer import WaveFTLinear
from safetensors.torch import load_file, save_file

from blockllm.core import Tensor
from blockllm.errors import (
    AdapterMismatch,
    CheckpointError,
    CorruptStore,
    UnsupportedModel,
    ZooError,
)
from blockllm.zoo import Zoo
from blockllm.zoo.adapters.computed import projected
from blockllm.zoo.adapters.computed.random import kaiming, permutation, seeded
from blockllm.zoo.adapters.kinds import choose_kind
from blockllm.zoo.arrays import Weights
from blockllm.zoo.checkpoint import open_adapter
from tests.makers import make_adapter, make_checkpoint, make_lora
from tests.oracle.kind_cases import BASES, KIND_CASES
from tests.zoo.conftest import read_tensor


class Shelf:
    """Bases in one zoo, and adapters of every kind on them, made when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root, self.zoo = root, Zoo(root / "zoo")
        for name, options in BASES.items():
            make_checkpoint(root / name, num_hidden_layers=1, **options)
            self.zoo.add(name, root / name)

    def adapter(self, name: str) -> Path:
        path, case = self.root / f"adapter-{name}", KIND_CASES[name]
        if not path.exists():
            config = getattr(peft, case.config)(task_type="CAUSAL_LM", **case.options)
            make_adapter(self.root / case.base, path, config)
        return path

    def read(self, folder: Path, base: str = "plain") -> None:
        """Check an adapter against a base, as the zoo does before it stores anything."""
        kind = choose_kind(folder)
        with open_adapter(folder, kind.files, kind.saving) as files:
            kind.read(files.tensors, self.zoo.layers(base))

    def weight(self, model: str, position: int, name: str) -> np.ndarray:
        return Weights(self.zoo.layers(model), self.zoo.pack_path)[position, name]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf"))


def array(zoo: Zoo, tensor: Tensor) -> np.ndarray:
    return np.frombuffer(read_tensor(zoo, tensor), np.float32).reshape(tensor.shape)


def change(
    source: Path, path: Path, tensors: Callable[[dict[str, Any]], Any], **options: Any
) -> Path:
    """A copy of an adapter with other options, and what `tensors` makes of its tensors."""
    shutil.copytree(source, path, dirs_exist_ok=True)
    file, config = path / "adapter_model.safetensors", path / "adapter_config.json"
    loaded = load_file(file)
    tensors(loaded)
    save_file(loaded, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | options))
    return path


def drop(end: str) -> Callable[[dict[str, Any]], None]:
    def without(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if end in name]:
            del tensors[name]

    return without


def keep(_: dict[str, Any]) -> None:
    """All tensors as they are."""


REFUSED: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Any]], Any], str]] = {
    "half of VeRA": ("vera", {}, drop("base_model.vera_B"), "save_projection=True"),
    "PVeRA drawing": ("pvera", {"sample_at_inference": True}, keep, "sample_at_inference"),
    "RandLoRA": ("randlora", {}, drop("randlora_B"), "save_projection=True"),
    "Uni-LoRA": ("unilora-head", {"target_modules": ".*q_proj"}, keep, "save_indices=True"),
    "TinyLoRA": ("tinylora", {}, drop("tinylora_P"), "save_projection=True"),
    "FRoD": ("frod", {}, drop("frod_V"), "save_projection=True"),
    "Supertuning": ("supertuning", {}, drop("indices"), "save_precomputed_indices=True"),
    "WaveFT": ("waveft", {"wavelet_family": "db4"}, keep, "wavelet_family 'db4'"),
    "RoAd": ("road", {"variant": "road_9"}, keep, "road_9"),
    "DEFT": ("deft", {"decomposition_method": "svd"}, keep, "decomposition_method"),
    "PEANuT": ("peanut", {"act_fn": "gelu"}, keep, "act_fn 'gelu'"),
    "an option of another kind": ("oft", {"lora_alpha": 3}, keep, "lora_alpha"),
    "a slow pattern": ("loha", {"rank_pattern": {"(a+)+b": 3}}, keep, "too complex"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_file_does_not_hold_is_refused(shelf: Shelf, tmp_path: Path, case: str) -> None:
    name, options, tensors, message = REFUSED[case]
    folder = change(shelf.adapter(name), tmp_path / "changed", tensors, **options)
    with pytest.raises(UnsupportedModel) as caught:
        shelf.read(folder, KIND_CASES[name].base)
    assert message in str(caught.value)


def spoilt(tensor: torch.Tensor) -> list[torch.Tensor | None]:
    """The tensor with another shape, with another type, and missing."""
    return [tensor.reshape(1, 1, *tensor.shape), tensor.to(torch.int8), None]


# copies of what stands elsewhere in the file, or says nothing
UNREAD = re.compile(r"layers.*\.randlora_[AB]$|frod_s_size")
# what the base has, or is zero
OPTIONAL = re.compile(r"base_layer|zeros")


@pytest.mark.parametrize("name", KIND_CASES)
def test_tensors_that_do_not_fit_are_refused(shelf: Shelf, tmp_path: Path, name: str) -> None:
    folder = change(shelf.adapter(name), tmp_path / "changed", keep)
    file = folder / "adapter_model.safetensors"
    loaded, tried = load_file(file), 0
    for key, tensor in loaded.items():
        if UNREAD.search(key) or ("layers" in key and ".q_proj." not in key):
            continue  # one module is enough
        module = key[: key.find(".q_proj.")]
        for wrong in spoilt(tensor):
            others = {n: t for n, t in loaded.items() if n != key}
            # a module that has nothing left is no module of the adapter
            is_alone = not any(n.startswith(f"{module}.q_proj.") for n in others)
            if wrong is None and (is_alone or OPTIONAL.search(key)):
                continue
            save_file(others if wrong is None else {**others, key: wrong.contiguous()}, file)
            tried += 1
            with pytest.raises(CheckpointError):
                shelf.read(folder, KIND_CASES[name].base)
    assert tried or name in ("beft", "beft-biased")


OUTSIDE = {
    "shira": ("shira_indices", 48),
    "supertuning": ("supertuning_indices", -1),
    "unilora": ("unilora_indices_A", 8),
    "vblora-short": ("logits_A_topk_indices", 20),
    "frod": ("frod_s_indices", 1 << 40),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_indices_outside_are_refused_and_nothing_changes(
    shelf: Shelf, tmp_path: Path, name: str
) -> None:
    end, wrong = OUTSIDE[name]

    def spoil(tensors: dict[str, Any]) -> None:
        key = next(key for key in tensors if end in key)
        tensors[key].view(-1)[-1] = wrong

    folder = change(shelf.adapter(name), tmp_path / "changed", spoil)
    models = [card.name for card in shelf.zoo.cards()]
    with pytest.raises(ZooError, match="index"):
        shelf.zoo.add("outside", folder, base="plain")
    assert [card.name for card in shelf.zoo.cards()] == models


def test_drawing_is_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected, "_MOST_DRAWN", 100)
    with pytest.raises(UnsupportedModel, match="8 ranks are too many to be drawn again"):
        shelf.read(shelf.adapter("vera-drawn"))


def test_several_butterfly_factors(shelf: Shelf, tmp_path: Path) -> None:
    """peft trains them on GPUs only; its own functions say what they are."""
    source = shelf.adapter("boft")
    size, factors = 4, 3
    generator = torch.Generator().manual_seed(1)

    def widen(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.endswith("boft_R")]:
            shape = (factors, *tensors[name].shape[1:])
            tensors[name] = 0.3 * torch.randn(shape, generator=generator)

    folder = change(source, tmp_path / "wide", widen, target_modules=["q_proj"])
    name = "model.layers.0.self_attn.q_proj"
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {key: t for key, t in tensors.items() if "q_proj" in key}
    save_file(kept, folder / "adapter_model.safetensors")
    shelf.zoo.add("butterfly", folder, base="biased")
    weight = load_file(shelf.root / "biased" / "model.safetensors")[f"{name}.weight"]
    inputs = weight.shape[1]
    rotation = torch.eye(inputs)
    for level, blocks in enumerate(kept[f"base_model.model.{name}.boft_R"]):
        turns = torch.block_diag(*BOFTLayer.cayley_batch(None, blocks))
        order = BOFTLayer.block_butterfly_perm(
            None, inputs, inputs // size // 2**level, size // 2, factors - 1
        )
        places = BOFTLayer.perm2mat(None, order)
        rotation = places @ turns @ places.T @ rotation
    expected = kept[f"base_model.model.{name}.boft_s"] * (weight @ rotation.T)
    found = shelf.weight("butterfly", 1, "self_attn.q_proj.weight")
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_butterfly_blocks_of_an_odd_size(shelf: Shelf, tmp_path: Path) -> None:
    config = peft.BOFTConfig(boft_block_size=3, target_modules=["down_proj"], bias="all")
    made = make_adapter(shelf.root / "biased", tmp_path / "odd", config)
    shelf.zoo.add("odd", made, base="biased")
    model = transformers.AutoModelForCausalLM.from_pretrained(shelf.root / "biased")
    merged = peft.PeftModel.from_pretrained(model, made).merge_and_unload().state_dict()
    found = shelf.weight("odd", 1, "mlp.down_proj.weight")
    expected = merged["model.layers.0.mlp.down_proj.weight"].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("sizes", [(5, 7), (6, 9), (8, 8)])
def test_haar_coefficients_of_odd_sizes(sizes: tuple[int, int]) -> None:
    from blockllm.zoo.adapters.computed.spectra import _spread

    config = peft.WaveFTConfig(n_frequency=12, scaling=1.0, target_modules=["x"])
    layer = WaveFTLinear(torch.nn.Linear(sizes[1], sizes[0]), "default", config, n_frequency=12)
    values = torch.arange(1.0, 13.0)
    layer.waveft_spectrum["default"].data.copy_(values)
    expected = layer.get_delta_weight("default").detach().numpy()
    found = np.zeros(sizes[0] * sizes[1], np.float32)
    drawn = permutation(sizes[0] * sizes[1], 12, 777)
    np.add.at(found, *_spread(drawn, values.numpy(), sizes))
    np.testing.assert_allclose(found.reshape(sizes), expected, atol=1e-6)


def test_matrices_are_drawn_as_torch_draws_them() -> None:
    generator, twister = torch.Generator().manual_seed(7), seeded(7)
    for shape in ((8, 33), (130, 8)):
        expected = torch.nn.init.kaiming_uniform_(torch.empty(shape), generator=generator)
        np.testing.assert_array_equal(kaiming(twister, shape), expected.numpy())


@pytest.mark.parametrize("size", [1, 2, 100, 1 << 22])
def test_places_are_drawn_as_torch_draws_them(size: int) -> None:
    count = min(size, 50)
    for seed in (0, 777, 2**31):
        generator = torch.Generator().manual_seed(seed)
        if size < 1 << 20 or seed == 777:
            expected = torch.randperm(size, generator=generator)[:count].tolist()
            assert permutation(size, count, seed).tolist() == expected


def test_bone_is_what_miss_was_called(shelf: Shelf, tmp_path: Path) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace("miss", "bone")] = tensors.pop(name)

    folder = change(shelf.adapter("miss"), tmp_path / "bone", rename, peft_type="BONE")
    shelf.zoo.add("bone", folder, base="plain")
    shelf.zoo.add("miss", shelf.adapter("miss"), base="plain")
    assert shelf.zoo.targets("bone") == shelf.zoo.targets("miss")


def test_the_report_says_what_is_merged(shelf: Shelf) -> None:
    report = shelf.zoo.add("oft", shelf.adapter("oft"), base="plain")
    assert report.notes == (
        "5 weights are merged with the adapter and kept whole: 22,528 bytes, fp32",
    )
    assert report.stored_bytes >= 22528
    assert shelf.zoo.card("oft").exact


def test_only_the_merged_part_of_a_layer_is_new(shelf: Shelf, tmp_path: Path) -> None:
    config = peft.OFTConfig(oft_block_size=4, target_modules=["down_proj"], task_type="CAUSAL_LM")
    shelf.zoo.add("half", make_adapter(shelf.root / "plain", tmp_path / "half", config), "plain")
    own, base = shelf.zoo.layers("half")[1].tensors, shelf.zoo.layers("plain")[1].tensors
    assert {name for name in own if own[name] != base[name]} == {"mlp.down_proj.weight"}
    assert shelf.zoo.card("half").own_bytes == own["mlp.down_proj.weight"].nbytes


@pytest.mark.parametrize("name", ["hra", "oft", "loha-merged"])
def test_what_follows_from_a_changed_weight_is_refused(
    shelf: Shelf, tmp_path: Path, name: str
) -> None:
    """An adapter below changes q_proj, this one is computed from it."""
    base = KIND_CASES[name].base
    lora = make_lora(shelf.root / base, tmp_path / "lora", target_modules=["q_proj"])
    shelf.zoo.add(f"below-{name}", lora, base=base)
    with pytest.raises(AdapterMismatch, match=r"layer 0, self_attn\.q_proj: the base changes it"):
        shelf.zoo.add(f"above-{name}", shelf.adapter(name), base=f"below-{name}")


def test_an_adapter_on_a_merged_one_is_computed_from_it(shelf: Shelf) -> None:
    shelf.zoo.add("first", shelf.adapter("road-2"), base="plain")
    shelf.zoo.add("second", shelf.adapter("hra-orthogonal"), base="first")
    (target,) = shelf.zoo.targets("second")[1]["self_attn.q_proj"]
    a, b = (array(shelf.zoo, tensor) for tensor in (target.a, target.b))
    weight = shelf.weight("first", 1, "self_attn.q_proj.weight")
    np.testing.assert_allclose(b, -2 * weight @ a.T, atol=1e-5)


def test_a_head_that_is_saved_is_the_one_that_is_changed(shelf: Shelf, tmp_path: Path) -> None:
    config = peft.HRAConfig(r=1, target_modules=["lm_head"], task_type="CAUSAL_LM")
    made = make_adapter(shelf.root / "plain", tmp_path / "made", config)
    saved: list[np.ndarray] = []

    def lengthen(tensors: dict[str, Any]) -> None:
        tensors["base_model.model.lm_head.base_layer.weight"] *= 3
        saved.append(tensors["base_model.model.lm_head.base_layer.weight"].numpy())

    shelf.zoo.add("head", change(made, tmp_path / "long", lengthen), base="plain")
    (target,) = shelf.zoo.targets("head")[2]["head"]
    a, b = (array(shelf.zoo, tensor) for tensor in (target.a, target.b))
    np.testing.assert_allclose(b, -2 * saved[0] @ a.T, atol=1e-5)
    np.testing.assert_array_equal(shelf.weight("head", 2, "weight"), saved[0])


def test_an_embedding_is_refused_by_its_kind(shelf: Shelf, tmp_path: Path) -> None:
    config = peft.OFTConfig(
        oft_block_size=4, target_modules=["embed_tokens"], task_type="CAUSAL_LM"
    )
    made = make_adapter(shelf.root / "plain", tmp_path / "made", config)
    with pytest.raises(UnsupportedModel, match="oft of an embedding"):
        shelf.read(made)


def test_a_damaged_base_is_said(shelf: Shelf, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("plain", shelf.root / "plain")
    pack = zoo.layers("plain")[1].tensors["self_attn.q_proj.weight"].pack
    with zoo.pack_path(pack).open("r+b") as file:
        file.truncate(64)
    with pytest.raises(CorruptStore, match="is damaged"):
        zoo.add("oft", shelf.adapter("oft"), base="plain")
    assert [card.name for card in zoo.cards()] == ["plain"]


@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_bases_of_other_types(shelf: Shelf, tmp_path: Path, dtype: str) -> None:
    """A merged weight is fp32 over bf16 and int8 over int8; factors are fp32."""
    own = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    base = make_checkpoint(tmp_path / "base", num_hidden_layers=1, dtype=own)
    shelf.zoo.add(f"base-{dtype}", base, format="int8" if dtype == "int8" else None)
    for name in ("hra-orthogonal", "oft"):
        shelf.zoo.add(f"{name}-{dtype}", shelf.adapter(name), base=f"base-{dtype}")
    tensors = shelf.zoo.layers(f"oft-{dtype}")[1].tensors
    stored = tensors["self_attn.q_proj.weight"].dtype
    assert stored == ("I8" if dtype == "int8" else "F32")
    old = shelf.weight(f"base-{dtype}", 1, "self_attn.q_proj.weight")
    new = shelf.weight(f"oft-{dtype}", 1, "self_attn.q_proj.weight")
    assert np.abs(np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1) - 1).max() < 0.02
    assert shelf.zoo.verify().is_sound
