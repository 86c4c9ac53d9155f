"""Specs of comparisons: what they become, and what is said about wrong ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from blockllm.bench.launch import launches
from blockllm.bench.spec import Spec, read_spec, select
from blockllm.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "bench"

SPEC = """
name = "two"
[[arm]]
name = "ours"
kind = "blockllm"
zoo = "${zoo}"
flags = ["--memory", "1GiB"]
[[arm]]
name = "each"
kind = "per-model"
zoo = "${zoo}"
threads = 1
[[arm]]
name = "weights"
kind = "shared-parameters"
zoo = "${zoo}"
models = { a = "first" }
[[arm]]
name = "other"
kind = "command"
command = ["server", "--port", "{port}", "--name", "{model}", "{path}"]
env = { PORT = "{port}" }
per_model = true
paths = { a = "/a", b = "/b" }
[[load]]
name = "eight"
models = ["a", "b"]
concurrency = 8
"""


def read(tmp_path: Path, text: str = SPEC, **variables: str) -> Spec:
    path = tmp_path / "spec.toml"
    path.write_text(text)
    return read_spec(path, {"zoo": "Z", **variables})


def test_arms_become_processes(tmp_path: Path) -> None:
    spec = read(tmp_path)
    ours, each, weights, other = (launches(arm, spec.models) for arm in spec.arm)
    assert [launch.models for launch in ours] == [("a", "b")]
    assert ours[0].command[:6] == (sys.executable, "-m", "blockllm", "serve", "a", "b")
    assert ours[0].command[-2:] == ("--memory", "1GiB") and ours[0].env == {}
    assert "Z" in ours[0].command
    assert [launch.models for launch in each] == [("a",), ("b",)]
    assert each[1].command[4] == "b" and "--threads" in each[1].command
    assert weights[0].env == {"BLOCKLLM_BATCHING": "models"}
    assert weights[0].command[4:6] == ("first", "b")
    on_port = other[1].on_port(81)
    assert on_port.command == ("server", "--port", "81", "--name", "b", "/b")
    assert on_port.env == {"PORT": "81"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threads = 1", 'threads = "x"', r'\[\[arm\]\] 2 \("each"\), threads: Expected `int`'),
        ("threads = 1", "thread = 1", r'\[\[arm\]\] 2 \("each"\).*unknown field `thread`'),
        ('kind = "per-model"', 'kind = "magic"', r'\[\[arm\]\] 2 \("each"\).*magic'),
        ('models = ["a", "b"]', "", r'\[\[load\]\] 1 \("eight"\).*missing.*models'),
        ("concurrency = 8", "", r'\[\[load\]\] "eight", concurrency or rate'),
        ("concurrency = 8", 'concurrency = 8\noutput_length = "x"', r'"eight", length'),
        ('name = "each"', 'name = "ours"', r'\[\[arm\]\], name: "ours" is there twice'),
        ('name = "two"', 'name = "two"\nreference = "x"', 'reference: no arm is called "x"'),
        ('name = "two"', 'name = "two"\npairs = 0', "pairs: expected 1 or more"),
        ('name = "two"', 'name = "two"\npair = 3', "unknown field `pair`"),
        (', b = "/b"', "", r'\[\[arm\]\] "other", paths: no entry for "b"'),
        ('"${zoo}"', '"${place}"', "give --set place="),
        ("[[load]]", "[[load]", "spec .*line"),
    ],
)
def test_errors_name_table_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in SPEC
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, SPEC.replace(old, new, 1))


def test_variables_have_defaults_and_fill_numbers(tmp_path: Path) -> None:
    text = SPEC.replace("pairs", "").replace("concurrency = 8", 'concurrency = "${at_once}"')
    text += "[set]\nat_once = 4\n"
    assert read(tmp_path, text).load[0].concurrency == 4
    assert read(tmp_path, text, at_once="9").load[0].concurrency == 9


def test_selection(tmp_path: Path) -> None:
    spec = read(tmp_path)
    chosen = select(spec, ["each", "weights"], [], 1)
    assert [arm.name for arm in chosen.arm] == ["each", "weights"] and chosen.pairs == 1
    assert chosen.reference_arm == "each"
    with pytest.raises(ConfigError, match=r'\[\[load\]\]: there is none called "x"'):
        select(spec, [], ["x"])


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.toml")), ids=lambda path: path.stem)
def test_documented_specs_are_valid(path: Path) -> None:
    import re

    text = path.read_text()
    names = set(re.findall(r"\$\{(\w+)\}", text))
    spec = read_spec(path, dict.fromkeys(names, "1"))
    assert spec.pairs >= 5 and all(launches(arm, spec.models) for arm in spec.arm)
