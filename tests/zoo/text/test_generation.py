"""generation_config.json: what requests get that leave a field out, and what of it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from blockllm.core import Sampling
from blockllm.errors import CheckpointError
from blockllm.zoo.text.generation import BOUNDS, Generation, read_generation


def read(folder: Path, document: object) -> Generation:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(document))
    return read_generation({path.name: path})


def test_fields_become_a_requests(tmp_path: Path):
    document = {
        "temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0.05, "repetition_penalty": 1.1,
        "max_new_tokens": 256, "do_sample": True, "eos_token_id": [2, 7], "num_beams": 4,
        "pad_token_id": None, "transformers_version": "4.57.0",
    }  # fmt: skip
    found = read(tmp_path, document)
    assert found.ends == (2, 7)
    assert not found.notes
    own: dict[str, Any] = dict(found.sampling)
    expected = Sampling(
        temperature=0.6, top_p=0.95, top_k=20, min_p=0.05, repetition_penalty=1.1, max_tokens=256
    )
    assert Sampling(**own) == expected


def test_who_does_not_sample_is_greedy(tmp_path: Path):
    assert read(tmp_path, {"do_sample": False, "temperature": 0.6}).sampling["temperature"] == 0
    assert read(tmp_path, {"do_sample": None, "temperature": 0.6}).sampling["temperature"] == 0.6
    assert read(tmp_path, {}).sampling == {}
    assert read(tmp_path, dict.fromkeys(("temperature", "top_k", "eos_token_id"))) == (
        Generation((), {}, ())
    )
    assert read_generation({}) == Generation((), {}, ())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"), ("temperature", 2.5), ("temperature", -0.1), ("temperature", True),
        ("top_p", 1.5), ("top_k", 3.5), ("top_k", -2), ("min_p", [0.1]), ("min_p", -1),
        ("repetition_penalty", 0), ("max_new_tokens", 0), ("max_new_tokens", 10**30),
        ("temperature", 10**400), ("do_sample", "no"),
    ],
)  # fmt: skip
def test_values_that_no_request_may_have_are_said_and_ignored(
    tmp_path: Path, name: str, value: object
):
    found = read(tmp_path, {"top_p": 0.5, name: value} if name != "top_p" else {name: value})
    assert set(found.sampling) <= {"top_p"} - {name}
    (note,) = found.notes
    assert note.startswith(f"generation_config.json: {name}: got ")
    assert note.endswith("it is ignored")


def test_numbers_that_json_does_not_have(tmp_path: Path):
    path = tmp_path / "generation_config.json"
    path.write_text('{"temperature": NaN, "top_p": Infinity, "top_k": 20.0}')
    found = read_generation({path.name: path})
    assert found.sampling == {"top_k": 20}
    assert len(found.notes) == 2


def test_every_default_is_a_field_of_a_request():
    assert set(BOUNDS) <= set(Sampling.__struct_fields__)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", '{"eos_token_id": "</s>"}'])
def test_damaged_files_are_named(tmp_path: Path, text: str):
    path = tmp_path / "stored-under-another-name"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"^generation_config\.json: "):
        read_generation({"generation_config.json": path})
