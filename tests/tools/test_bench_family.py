"""The benchmark family: loadable by transformers and peft, and shared as far as it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from blockllm.zoo import Zoo
from tests.oracle.reference import load
from tools.studies.bench_family import Shape, make_family


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    make_family(folder, Shape(layers=4, hidden=128, vocab=400), 2, 1, changed_from_layer=3)
    return folder


def test_the_zoo_shares_what_is_equal(family: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("base", family / "base")
    for name in ("ft0", "ft1"):
        report = zoo.add(name, family / name)
        layer = zoo.chain(name).entries[2].block
        assert len(layer.layers) == 1
        assert report.stored_bytes == layer.nbytes
    assert zoo.add("lora0", family / "lora0", base="base").num_shared_blocks == 4


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads what transformers renames
def test_transformers_and_peft_load_it(family: Path) -> None:
    tuned = load(family / "base", family / "lora0")
    weights = [p for name, p in tuned.named_parameters() if "lora_B" in name]
    assert len(weights) == 7 * 4
    assert all(weight.abs().sum() > 0 for weight in weights)
    tokenizer = AutoTokenizer.from_pretrained(family / "base")
    assert tokenizer.decode(tokenizer("def add(a, b):")["input_ids"]) == "def add(a, b):"
