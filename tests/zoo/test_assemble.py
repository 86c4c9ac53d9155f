"""Models made of layers of the zoo and of new ones; findings about them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from blockllm.core import GainTarget
from blockllm.errors import CorruptStore, NameTaken, UnknownModel, ZooError
from blockllm.zoo import Zoo
from blockllm.zoo.assemble import NewLayer, NewTarget
from tests.makers import make_checkpoint
from tests.zoo.conftest import contents, read_tensor


class Found(msgspec.Struct, frozen=True):
    kl: float


def test_layers_of_two_models_make_a_third(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("a", llama)
    zoo.add("b", make_checkpoint(tmp_path / "b", seed=9))
    a, b = zoo.layers("a"), zoo.layers("b")
    report = zoo.assemble("c", "a", [*a[:2], *b[2:]])
    assert report.stored_bytes == 0
    assert zoo.layers("c") == (*a[:2], *b[2:])
    card = zoo.card("c")
    assert (card.kind, card.exact, card.own_bytes) == ("assembled", False, 0)
    assert zoo.verify().is_sound
    zoo.remove("a")
    zoo.remove("b")
    zoo.gc()
    assert zoo.verify().is_sound


def test_new_weights_are_stored_once(zoo: Zoo, llama: Path) -> None:
    zoo.add("a", llama)
    layers = zoo.layers("a")
    name = "input_layernorm.weight"
    old = layers[1].tensors[name]
    weight = np.linspace(0.5, 1.5, old.shape[0], dtype=np.float32)
    new = NewLayer(layers[1].function, {**layers[1].tensors, name: weight})
    gain = NewTarget("gain", {"gain": weight}, {"side": "output"})
    targets = {2: {"self_attn.o_proj": (gain,)}}
    report = zoo.assemble(
        "c", "a", [layers[0], new, *layers[2:]], "tried", True, targets=targets, parent="a"
    )
    assert report.stored_bytes == weight.nbytes
    stored = zoo.layers("c")[1].tensors[name]
    assert read_tensor(zoo, stored) == weight.tobytes()
    assert zoo.targets("c")[2]["self_attn.o_proj"] == (GainTarget(stored, "output"),)
    card = zoo.card("c")
    assert (card.kind, card.exact, card.parent) == ("tried", True, "a")
    with pytest.raises(ZooError, match="base of c"):
        zoo.remove("a")


def test_what_is_no_model_changes_nothing(zoo: Zoo, tmp_path: Path, llama: Path) -> None:
    zoo.add("a", llama)
    layers = zoo.layers("a")
    new = NewLayer(layers[1].function, {"x": np.zeros(3, np.float64)})
    before = contents(tmp_path / "zoo")
    for name, like, chosen, error in (
        ("a", "a", layers, NameTaken),
        ("c", "nobody", layers, UnknownModel),
        ("c", "a", layers[1:], ZooError),
        ("c", "a", layers[:-1], ZooError),
        ("c", "a", [*layers[:2], layers[-1], *layers[2:]], ZooError),
        ("c", "a", [layers[0], new, layers[-1]], ZooError),
    ):
        with pytest.raises(error):
            zoo.assemble(name, like, chosen)
    assert contents(tmp_path / "zoo") == before


def test_findings_are_kept_by_kind_and_replaced(zoo: Zoo, tied: Path) -> None:
    zoo.add("model", tied)
    zoo.record_finding("equivalence", "a", "b", Found(0.1))
    zoo.record_finding("equivalence", "b", "a", Found(0.2))
    zoo.record_finding("equivalence", "a", "b", Found(0.3))
    zoo.record_finding("profile", "a", "b", Found(0.4))
    assert zoo.findings("equivalence", Found) == {("a", "b"): Found(0.3), ("b", "a"): Found(0.2)}

    class Other(msgspec.Struct, frozen=True):
        agreement: float

    with pytest.raises(CorruptStore):
        zoo.findings("profile", Other)
