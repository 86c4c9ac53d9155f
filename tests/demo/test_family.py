"""The committed demo family: it shares what it says, beats its base, and is served exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blockllm.engine import Engine
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.oracle.kept import expected, perplexity
from tools.demo import FAMILY, MODELS

SCORES = json.loads((FAMILY / "perplexity.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("demo") / "zoo")
    for name, base in MODELS.items():
        zoo.add(name, FAMILY / name, base=base)
    return zoo


def files(name: str) -> tuple[Path, list[Path]]:
    """The checkpoint of a member, and its adapters."""
    base = MODELS[name]
    return FAMILY / (base or name), [FAMILY / name] if base else []


def encode(text: str) -> list[int]:
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_file(str(FAMILY / "base" / "tokenizer.json")).encode(text).ids
    return ids


def test_frozen_lower_differs_in_the_upper_third_only() -> None:
    base = load_file(FAMILY / "base" / "model.safetensors")
    tuned = load_file(FAMILY / "frozen-lower" / "model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], tuned[name])}
    assert {name.split(".")[2] for name in changed} == {"4", "5"}
    full = load_file(FAMILY / "full" / "model.safetensors")
    assert not [name for name in base if torch.equal(base[name], full[name])]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "base"])
def test_a_fine_tune_beats_the_base_on_its_domain(name: str) -> None:
    domain = SCORES["domain_of"][name]
    scores = SCORES["perplexity"]
    assert scores[name][domain] < scores["base"][domain]
    ids = encode((FAMILY / "heldout" / f"{domain}.txt").read_text(encoding="utf-8"))
    assert perplexity(*files(name), ids, 500, 0) < perplexity(*files("base"), ids, 500, 0)


def test_all_members_in_one_batch_answer_as_the_reference(zoo: Zoo) -> None:
    prompts: dict[str, str] = json.loads((FAMILY / "prompts.json").read_text(encoding="utf-8"))
    engine = Engine(zoo, None, settings(memory="256MiB"))
    requests = [request(m, m, [0, *encode(text)], greedy(128)) for m, text in prompts.items()]
    answers = run(engine, requests)
    for name, text in prompts.items():
        assert answers[name].tokens == expected(*files(name), [0, *encode(text)], 128).tokens


def test_the_folder_is_small() -> None:
    files = [path for path in Path(FAMILY).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 55e6
