from __future__ import annotations

import json
from pathlib import Path

import pytest

from blockllm.api.models import Models, load_models
from blockllm.core import Block, Chain, ChainEntry
from blockllm.errors import BadRequest, CheckpointError, ModelNotFound, UnknownModel
from tests.api.family import FakeZoo, chat_ids, encode


def test_an_adapter_has_its_parents_tokenizer_and_template(models: Models):
    base, tuned, plain = (models.find(name) for name in ("base", "tuned", "plain"))
    assert tuned.decoder is base.decoder and tuned.content == base.content
    assert encode(plain, "a<s>", False) == encode(base, "a<s>", False)
    assert tuned.has_template
    assert not plain.has_template


def test_find(models: Models, folder: Path):
    with pytest.raises(ModelNotFound, match="'nix'"):
        models.find("nix")
    with pytest.raises(BadRequest, match="several"):
        models.find(None)
    only = load_models(FakeZoo(folder / "zoo"), ["base", "base"])
    assert only.find(None).name == "base"


def test_unknown_models_are_named_with_the_known_ones(folder: Path):
    with pytest.raises(UnknownModel, match=r"'nix'; it has base, tuned, plain"):
        load_models(FakeZoo(folder / "zoo"), ["base", "nix"])


def test_the_smaller_context_counts(folder: Path):
    zoo = FakeZoo(folder / "zoo")
    assert load_models(zoo, None, 100).find("base").max_context == 100
    assert load_models(zoo, None, 1000).find("base").max_context == 512


def test_the_engine_can_lower_a_context(folder: Path):
    models = load_models(FakeZoo(folder / "zoo"), None)
    models.limit({"base": 100, "tuned": 1000, "nix": 1})
    assert [model.max_context for model in models] == [100, 512, 512]


def test_the_fingerprint_names_what_computes(folder: Path):
    class Cut(FakeZoo):
        def chains(self, names):
            entries = {name: (ChainEntry(Block(name, ())),) for name in names}
            return {name: Chain(name, entries[name], 512) for name in names}

    models = load_models(Cut(folder / "zoo"), None)
    prints = {model.fingerprint for model in models}
    assert len(prints) == 3
    assert all(text.startswith("fp_") for text in prints)
    assert {text.rpartition("-")[2] for text in prints} == {"float32", "int8"}


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("tokenizer.json", "{}", "not a usable tokenizer"),
        ("tokenizer_config.json", "{", "'base' .* tokenizer_config.json: damaged JSON"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, file: str, content: str, match: str):
    zoo = FakeZoo(tmp_path / "zoo")
    (zoo.folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=match):
        load_models(zoo, ["base"])


def test_templates_in_a_file_or_by_name(tmp_path: Path):
    zoo = FakeZoo(tmp_path / "zoo")
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    config = {"chat_template": named, "bos_token": None}
    (zoo.folder / "tokenizer_config.json").write_text(json.dumps(config))
    messages = [{"role": "user", "content": "a"}]

    def rendered() -> str:
        model = load_models(zoo, ["base"]).find("base")
        return model.decoder.decode(chat_ids(model, messages), skip_special=False)

    assert rendered() == "D"
    (zoo.folder / "chat_template.jinja").write_text("J{{ bos_token }}")
    (zoo.folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<b>"}))
    assert rendered() in ("J", "J<b>")
