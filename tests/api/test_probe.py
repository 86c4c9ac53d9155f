"""Tokenizers and templates that break limits are refused when they are added, in seconds."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockllm.api.probe import probe_texts
from blockllm.errors import ZooError
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
GROW = "{% set n = namespace(s='a' * 999) %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}"
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}


def template(text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def tokenizer(**parts: object) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **parts}))

    return change


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe") / "base"
    return make_checkpoint(folder, tokenizer=True, num_hidden_layers=1)


HOSTILE = {
    "a template without end": (template(LOOP), "chat template took longer"),
    "a template that doubles": (template(GROW + "{% endfor %}{{ n.s }}"), "chat template"),
    "a width of gigabytes": (template("{{ '%4000000000d' % 1 }}"), "chat template"),
    "a pattern that backtracks": (tokenizer(pre_tokenizer=SPLIT), "tokenizer"),
    "replacements that multiply": (
        tokenizer(normalizer={"type": "Sequence", "normalizers": [REPLACE] * 6}),
        "tokenizer",
    ),
    "a broken map": (
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "tokenizer",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_breaks_limits_is_refused_and_nothing_is_added(
    tmp_path: Path, base: Path, name: str
) -> None:
    change, words = HOSTILE[name]
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    change(folder)
    zoo, start = Zoo(tmp_path / "zoo", probe_texts), time.monotonic()
    with pytest.raises(ZooError, match=words):
        zoo.add("model", folder)
    assert time.monotonic() - start < 20
    assert not zoo.exists() or zoo.cards() == []


def test_what_a_template_may_refuse_is_no_fault(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    template("{{ raise_exception('only users') if messages|length > 1 }}ok")(folder)
    zoo = Zoo(tmp_path / "zoo", probe_texts)
    zoo.add("model", folder)
    assert zoo.verify().is_sound
