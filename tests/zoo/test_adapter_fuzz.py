"""Damaged adapter folders of every kind: added or refused with a ZooError, and then unchanged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from blockllm.errors import ZooError
from blockllm.zoo import Zoo
from tests.makers import (
    HOULSBY,
    make_adapter,
    make_bitfit,
    make_bottleneck,
    make_checkpoint,
    make_lora,
)
from tests.zoo.conftest import contents
from tests.zoo.test_fuzz import JSON

Tensors = dict[str, torch.Tensor]


def _peft(base: Path, path: Path, kind: str, **options: Any) -> Path:
    return make_adapter(base, path, getattr(peft, kind)(task_type="CAUSAL_LM", **options))


MAKERS: dict[str, Callable[[Path, Path], Path]] = {
    "lora": lambda base, path: make_lora(base, path, bias="all", modules_to_save=["norm"]),
    "dora": lambda base, path: make_lora(base, path, use_dora=True),
    "ia3": lambda base, path: _peft(
        base, path, "IA3Config", target_modules=["k_proj", "down_proj"],
        feedforward_modules=["down_proj"],
    ),
    "ln": lambda base, path: _peft(base, path, "LNTuningConfig", target_modules=["norm"]),
    "bitfit": lambda base, path: make_bitfit(base, path, ["q_proj"]),
    "prefix": lambda base, path: _peft(base, path, "PrefixTuningConfig", num_virtual_tokens=3),
    "prompt": lambda base, path: _peft(base, path, "PromptTuningConfig", num_virtual_tokens=3),
    "bottleneck": lambda base, path: make_bottleneck(base, path, HOULSBY),
}  # fmt: skip


class Target:
    """A zoo with one base, and an intact adapter of each kind to damage copies of."""

    def __init__(self, root: Path) -> None:
        self.root, self.zoo = root, Zoo(root / "zoo")
        self._copy = root / "copy"
        base = make_checkpoint(root / "base", num_hidden_layers=1, attention_bias=True)
        self.zoo.add("base", base)
        self.before = contents(root / "zoo")
        for kind, make in MAKERS.items():
            make(base, root / kind)

    def config(self, kind: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self.root / kind / "adapter_config.json").read_text())
        return config

    def tensors(self, kind: str) -> Tensors:
        (file,) = (self.root / kind).glob("*.safetensors")
        return load_file(file)

    def add(self, kind: str, config: object, tensors: Tensors) -> bool:
        """Whether it was added; if not, nothing may have changed, and if so, nothing stays."""
        shutil.rmtree(self._copy, ignore_errors=True)
        self._copy.mkdir()
        (file,) = (self.root / kind).glob("*.safetensors")
        save_file(tensors, self._copy / file.name)
        (self._copy / "adapter_config.json").write_text(json.dumps(config))
        try:
            self.zoo.add("fuzz", self._copy, base="base")
        except ZooError as error:
            assert str(error)
            assert contents(self.root / "zoo") == self.before
            return False
        self.zoo.chain("fuzz")
        self.zoo.remove("fuzz")
        self.zoo.gc()
        return True


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(tmp_path_factory.mktemp("fuzz"))


def _wrong(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor in shapes and types that it must not have."""
    return [
        tensor[..., None].contiguous(),
        tensor.flatten()[:-1].clone(),
        torch.cat([tensor, tensor]),
        tensor[:0].clone(),
        torch.zeros(()),
        tensor.to(torch.int8),
        tensor.double(),
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_intact(target: Target, kind: str) -> None:
    assert target.add(kind, target.config(kind), target.tensors(kind))


@pytest.mark.parametrize("kind", MAKERS)
def test_every_tensor_missing_or_wrong(target: Target, kind: str) -> None:
    config, intact = target.config(kind), target.tensors(kind)
    for name, tensor in list(intact.items())[:8]:
        others = {other: value for other, value in intact.items() if other != name}
        for wrong in _wrong(tensor):
            assert not target.add(kind, config, {**others, name: wrong}), (name, wrong.shape)
        assert not target.add(kind, config, {**others, f"{name}x": tensor}), name
    assert not target.add(kind, config, {})
    assert not target.add(kind, config, {**intact, "stranger": torch.zeros(3)})


@pytest.mark.parametrize("kind", ["lora", "dora", "bottleneck", "prefix", "prompt"])
def test_every_part_missing(target: Target, kind: str) -> None:
    config, intact = target.config(kind), target.tensors(kind)
    needed = [n for n in intact if "lora_" in n or kind not in ("lora", "dora")]
    for name in needed:
        assert not target.add(kind, config, {n: t for n, t in intact.items() if n != name}), name


@pytest.mark.parametrize("kind", MAKERS)
@given(data=st.data())
@settings(max_examples=40)
def test_changed_settings(target: Target, kind: str, data: st.DataObject) -> None:
    config = target.config(kind)
    place = config["config"] if "config" in config and data.draw(st.booleans()) else config
    keys = st.sampled_from(sorted(place)) | st.text(max_size=4)
    for key, value in data.draw(st.dictionaries(keys, JSON, max_size=3)).items():
        place[key] = value
    for key in data.draw(st.lists(st.sampled_from(sorted(place)), max_size=1)):
        del place[key]
    target.add(kind, config, target.tensors(kind))


@pytest.mark.parametrize(
    "config",
    [[], None, "LORA", {}, {"peft_type": "X"}, {"config": "pfeiffer", "name": "a"}, {"config": {}}],
    ids=str,
)
def test_configs_of_no_kind(target: Target, config: object) -> None:
    assert not target.add("lora", config, target.tensors("lora"))


@pytest.mark.parametrize("rank", [0, -1, 1 << 15, 1 << 40, 1e300, "4", None, [4]])
def test_ranks(target: Target, rank: object) -> None:
    config = {**target.config("lora"), "r": rank}
    assert not target.add("lora", config, target.tensors("lora"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "learned", None, 10**400])
def test_scales(target: Target, value: object) -> None:
    lora = {**target.config("lora"), "lora_alpha": value}
    assert not target.add("lora", lora, target.tensors("lora"))
    bottleneck = target.config("bottleneck")
    bottleneck["config"]["scaling"] = value
    # an absent scaling is 1
    assert target.add("bottleneck", bottleneck, target.tensors("bottleneck")) == (value is None)
