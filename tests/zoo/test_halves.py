"""Models that share only the attention or only the MLP of a layer: cut there, and only there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.chain import plan_spans
from blockllm.core import Chain, LayerFunction
from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint, make_lora

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12]


def changed(base: Path, path: Path, wanted: Callable[[str], bool]) -> Path:
    """The checkpoint with random noise on the tensors that are wanted."""
    shutil.copytree(base, path)
    tensors = load_file(path / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name in sorted(tensors):
        if wanted(name):
            tensors[name] += 0.3 * torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return path


def parts(chain: Chain) -> list[list[str]]:
    """What lies in each block of decoder layers."""
    found = [[layer.function for layer in entry.block.layers] for entry in chain.entries]
    return [
        [f.part for f in functions if isinstance(f, LayerFunction)]
        for functions in found
        if isinstance(functions[0], LayerFunction)
    ]


@pytest.fixture
def models(tmp_path: Path, zoo: Zoo) -> Zoo:
    base = make_checkpoint(tmp_path / "base", seed=1, num_hidden_layers=4)
    zoo.add("base", base)
    zoo.add("mlp", changed(base, tmp_path / "mlp", lambda n: "layers.2.mlp" in n))
    zoo.add("attention", changed(base, tmp_path / "at", lambda n: "layers.1.self_attn" in n))
    zoo.add("lora", make_lora(base, tmp_path / "lora"), base="base")
    return zoo


def test_layers_are_cut_where_one_half_is_shared(models: Zoo) -> None:
    whole, half = "whole", ["attention", "mlp"]
    for name in ("mlp", "attention"):
        assert parts(models.chain(name)) == [
            [whole],
            [half[0]],
            [half[1]],
            [half[0]],
            [half[1]],
            [whole],
        ]
    spans = plan_spans(models.chains(["base", "mlp"]).values()).spans
    private = [span for span in spans if len(span.models) == 1]
    assert [[len(block.layers) for block in span.blocks] for span in private] == [[1], [1]]
    assert {span.models for span in private} == {("base",), ("mlp",)}


def test_nothing_is_cut_without_a_reason(tmp_path: Path, zoo: Zoo) -> None:
    base = make_checkpoint(tmp_path / "base", seed=1)
    zoo.add("base", base)
    zoo.add("all", changed(base, tmp_path / "all", lambda n: "layers.2." in n))
    assert {part for block in parts(zoo.chain("all")) for part in block} == {"whole"}


def test_halves_join_again_when_the_other_model_goes(models: Zoo) -> None:
    models.remove("mlp")
    models.remove("attention")
    assert {part for block in parts(models.chain("lora")) for part in block} == {"whole"}


def test_answers_are_those_of_a_zoo_of_their_own(models: Zoo, tmp_path: Path) -> None:
    names = ["base", "mlp", "attention", "lora"]
    requests = [request(name, name, PROMPT, greedy(8)) for name in names]
    together = Engine(models, names, settings())
    found = {name: answer.tokens for name, answer in run(together, requests).items()}
    shared = [span for span in together.stats().spans if len(span.models) > 1]
    assert len(shared) == 5 and all(span.rows > span.hops for span in shared)
    expected = {}
    for name, folder in (("base", "base"), ("mlp", "mlp"), ("attention", "at"), ("lora", "lora")):
        alone = Zoo(tmp_path / f"only-{name}")
        if name == "lora":
            alone.add("base", tmp_path / "base")
        alone.add(name, tmp_path / folder, base="base" if name == "lora" else None)
        engine = Engine(alone, [name], settings())
        expected[name] = run(engine, [request(name, name, PROMPT, greedy(8))])[name].tokens
    assert found == expected
    assert len(set(map(tuple, found.values()))) == len(names)
