"""Tokenizers and templates that cannot be read are refused when added, and found by `verify`."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from blockllm.errors import CheckpointError
from blockllm.zoo import Zoo, ingest
from blockllm.zoo.assets import asset_name
from blockllm.zoo.seals import seal_all
from blockllm.zoo.text.facts import TextFacts
from blockllm.zoo.text.template import find_template
from tests.makers import make_lora
from tests.zoo.conftest import contents

LOOPS = "".join(f"{{% for a{i} in messages %}}" for i in range(30)) + "{% endfor %}" * 30
AROUND = {
    "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
    "post_processor": {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
    },
}  # fmt: skip
FAR = {"type": "BPE", "vocab": {"a": 1 << 21}, "merges": []}
DAMAGED = [
    ("tokenizer.json", "{", "not a usable tokenizer"),
    ("tokenizer.json", '{"model": {"type": "BPE"}}', "not a usable tokenizer"),
    ("tokenizer.json", "", "not a usable tokenizer"),
    ("tokenizer.json", json.dumps(AROUND), "no entry found for key"),
    ("tokenizer.json", json.dumps({"model": FAR}), "id 2097152, allowed are 0 to 2097151"),
    ("tokenizer_config.json", "[1]", "expected a JSON object"),
    ("tokenizer_config.json", '{"chat_template": 7}', "chat_template: expected a string, got 7"),
    ("tokenizer_config.json", '{"chat_template": "{% if %}"}', "usable chat template: line 1"),
    ("special_tokens_map.json", "{", "damaged JSON"),
    ("added_tokens.json", '{"<x>": "y"}', "expected a token's id"),
    ("chat_template.jinja", "{% for %}", "not a usable chat template: line 1: "),
    ("chat_template.jinja", "{{ messages | unheard_of }}", "No filter named 'unheard_of'"),
    ("chat_template.jinja", LOOPS, "nests too deeply"),
    ("chat_template.jinja", "a" * (1 << 20) + "b", "longer than 1048576 characters"),
    ("chat_template.jinja", "\xe9", "not UTF-8"),
    ("generation_config.json", "{", "damaged JSON"),
    ("tokenizer_config.json", '{"bos_token": "\\ud83d"}', "surrogates not allowed"),
]


@pytest.mark.parametrize(("file", "text", "match"), DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_files_are_refused_by_name(
    zoo: Zoo, tmp_path: Path, llama: Path, file: str, text: str, match: str
):
    zoo.add("base", llama)
    before = contents(tmp_path / "zoo")
    sources = [shutil.copytree(llama, tmp_path / "model"), make_lora(llama, tmp_path / "adapter")]
    for source in sources:
        if file == "tokenizer_config.json":
            (source / "chat_template.jinja").unlink(missing_ok=True)
        (source / file).write_bytes(text.encode("latin-1"))
        base = "base" if source.name == "adapter" else None
        with pytest.raises(CheckpointError, match=f"^{file}: ") as error:
            zoo.add("damaged", source, base=base)
        assert match in str(error.value)
    assert contents(tmp_path / "zoo") == before


@pytest.mark.parametrize(
    "template", ["{{ 'a' * 10**10 }}", "{{ '%9999999999d' % 1 }}", "{{ 1/0 }}"]
)
def test_what_a_template_would_compute_is_not_computed(
    zoo: Zoo, tmp_path: Path, llama: Path, template: str
):
    source = shutil.copytree(llama, tmp_path / "model")
    (source / "chat_template.jinja").write_text(template)
    zoo.add("model", source)


def test_templates_whose_names_are_no_text_are_passed_over(tmp_path: Path):
    entries = [{"name": []}, {}, 1, {"name": "default", "template": "x"}, {"name": None}]
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"chat_template": entries}))
    assert find_template({path.name: path}) == (path.name, "x")


def test_verify_names_what_an_older_program_took(zoo: Zoo, tmp_path: Path, llama: Path):
    zoo.add("base", llama)
    zoo.add("tuned", make_lora(llama, tmp_path / "adapter"), base="base")
    bare = shutil.copytree(llama, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    zoo.add("other", bare)
    assert zoo.verify().is_sound
    stored = zoo.asset("base", "chat_template.jinja")
    assert stored is not None
    name = asset_name(b"{% for %}", ".jinja")
    path = stored.parent.parent / name[:2] / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"{% for %}")
    with sqlite3.connect(tmp_path / "zoo" / "catalog.sqlite") as connection:
        connection.execute("UPDATE asset SET name = ? WHERE name = ?", [name, stored.name])
        seal_all(connection)
    connection.close()
    (problem,) = zoo.verify().problems
    assert (problem.where, problem.models) == ("text files", ("base", "tuned"))
    assert problem.what.startswith("chat_template.jinja: not a usable chat template: line 1")


def add_tokens(folder: Path, count: int) -> None:
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens([f"<new {index}>" for index in range(count)])
    tokenizer.save(str(path))


def test_a_tokenizer_with_more_tokens_than_the_model_is_said(zoo: Zoo, tmp_path: Path, llama: Path):
    source = shutil.copytree(llama, tmp_path / "model")
    report = zoo.add("base", source)
    rows = json.loads((llama / "config.json").read_text())["vocab_size"]
    assert report.notes == ()
    add_tokens(source, 3)
    expected = f"the tokenizer has ids up to {rows + 2}, the model only tokens 0 to {rows - 1}"
    (note,) = zoo.add("wider", source).notes
    assert note == f"{expected}: text that needs others will be refused"
    adapter = make_lora(llama, tmp_path / "adapter")
    assert zoo.add("same", adapter, base="wider").notes == ()  # it was said of the base
    shutil.copy(source / "tokenizer.json", adapter)
    (note,) = zoo.add("tuned", adapter, base="base").notes
    assert note.startswith(expected)


def test_files_that_are_the_bases_are_not_read_again(
    zoo: Zoo, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
):
    zoo.add("base", llama)
    adapter = make_lora(llama, tmp_path / "adapter")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(llama / file, adapter)
    read = []
    monkeypatch.setattr(ingest, "read_facts", lambda *args: (read.append(args), TextFacts())[1])
    zoo.add("same", adapter, base="base")
    assert not read
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    zoo.add("other", adapter, base="base")
    assert len(read) == 1
    assert zoo.chain("same").eos_ids == zoo.chain("base").eos_ids


def test_a_model_without_a_tokenizer_is_said(zoo: Zoo, tied: Path):
    (note,) = zoo.add("bare", tied).notes
    assert note.startswith("no tokenizer.json: requests with text will be refused")
