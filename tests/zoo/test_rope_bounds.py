from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from blockllm.engine import Engine
from blockllm.errors import CheckpointError
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("plain") / "model")


def rewritten(plain: Path, folder: Path, **entries: Any) -> Path:
    """The same model with other entries in its config.json."""
    folder.mkdir()
    for file in plain.iterdir():
        (folder / file.name).hardlink_to(file)
    config = json.loads((plain / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return folder


@pytest.mark.parametrize(
    ("rope", "name"),
    [
        ({"rope_type": "linear", "factor": 1e308}, "factor"),
        ({"rope_type": "dynamic", "factor": 1e12}, "factor"),
        ({"rope_type": "yarn", "factor": 1e15}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_fast": 1e308}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 4.0, "beta_slow": 1e-320}, "beta_slow"),
    ],
)
def test_numbers_that_overflow_the_formulas_are_named(
    plain: Path, tmp_path: Path, rope: dict[str, Any], name: str
):
    words = rf"{name}: expected a finite number.*at most 1e\+(06|12)"
    with pytest.raises(CheckpointError, match=words):
        Zoo(tmp_path / "zoo").add("bad", rewritten(plain, tmp_path / "bad", rope_scaling=rope))


@pytest.mark.parametrize(
    "entries",
    [
        {"max_position_embeddings": 2**31 - 1},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 1e6}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 1e6, "beta_fast": 1e6}},
    ],
)
def test_a_huge_context_costs_no_memory_beyond_the_pages(
    plain: Path, tmp_path: Path, entries: dict[str, Any]
):
    zoo = Zoo(tmp_path / "zoo")
    zoo.add("good", plain)
    zoo.add("long", rewritten(plain, tmp_path / "long", **entries))
    engine = Engine(zoo, None, settings())
    prompt = [1, 2, 3]
    names = ("good", "long")
    answers = run(engine, [request(name, name, prompt, greedy(2)) for name in names])
    assert [len(answers[name].tokens) for name in names] == [2, 2]


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
@pytest.mark.parametrize("value", [1e308, 1e13])
def test_numbers_beyond_all_use_are_refused(
    zoo: Zoo, tmp_path: Path, llama: Path, key: str, value: float
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(llama, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_parameters", None)
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=rf"config.json: {key}: .* at most 1e\+12"):
        zoo.add("model", folder)
