"""Damaged, lying and unsafe checkpoints: a clear error, and a zoo as it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from blockllm.errors import CheckpointError, UnsafeCheckpoint, UnsupportedModel, ZooError
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint
from tests.zoo.conftest import contents

WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path: Path, llama: Path) -> Path:
    """A checkpoint that the test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "source"))


@pytest.fixture
def refused(zoo: Zoo, tmp_path: Path, tied: Path) -> Callable[..., None]:
    """Asserts that adding a folder fails and changes nothing in a zoo that has a model."""
    zoo.add("present", tied)
    before = contents(tmp_path / "zoo")

    def check(
        folder: Path, kind: type[Exception] = CheckpointError, match: str | None = None
    ) -> None:
        with pytest.raises(kind, match=match):
            zoo.add("bad", folder)
        assert contents(tmp_path / "zoo") == before

    return check


def _edit(source: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    save_file(tensors, source / WEIGHTS)


def test_missing_files(source: Path, tmp_path: Path, refused: Callable[..., None]) -> None:
    refused(tmp_path / "nowhere", match="no folder")
    refused(source / CONFIG, match="is a file")
    (source / WEIGHTS).unlink()
    refused(source, match=r"no model\.safetensors")
    (source / CONFIG).unlink()
    refused(source, match=r"config\.json")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "x.pth"])
def test_pickled_weights(source: Path, refused: Callable[..., None], name: str) -> None:
    (source / WEIGHTS).rename(source / name)
    refused(source, UnsafeCheckpoint, "safe_serialization")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("model.norm.weight"), "missing"),
        (lambda t: t.pop("lm_head.weight"), "missing"),
        (lambda t: t.pop("model.layers.3.mlp.up_proj.weight"), "missing"),
        (lambda t: t.update({"model.layers.4.x": torch.zeros(1)}), "unknown tensor"),
        (lambda t: t.update({"lm_head.bias": torch.zeros(96)}), "unknown tensor"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(33)}), "expected shape"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(32, 1)}), "expected shape"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(())}), "expected shape"),
    ],
)
def test_wrong_tensors(
    source: Path, refused: Callable[..., None], change: Callable[[Any], Any], match: str
) -> None:
    _edit(source, change)
    refused(source, match=match)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.float8_e4m3fn])
def test_other_types(source: Path, refused: Callable[..., None], dtype: torch.dtype) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    _edit(source, lambda tensors: tensors.update({name: tensors[name].to(dtype)}))
    match = "supported: F32, BF16, F16" if dtype == torch.float64 else "weights are quantised"
    refused(source, UnsupportedModel, match)


def _rewrite_header(source: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = (source / WEIGHTS).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    text = change(header)
    if not isinstance(text, bytes):
        text = json.dumps(header).encode()
    (source / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    "change",
    [
        lambda h: b"",
        lambda h: b"[]",
        lambda h: b"{",
        lambda h: b"\xff\xfe{}",
        lambda h: b"[" * 100_000,
        lambda h: json.dumps(h).encode()[:-1] + b', "a": NaN}',
        lambda h: json.dumps(h)[:-1].encode() + b"," + json.dumps(h)[1:].encode(),
        lambda h: h.pop(NORM),
        lambda h: h[NORM].update(dtype="F16"),
        lambda h: h[NORM].update(dtype="F33"),
        lambda h: h[NORM].update(dtype=["F32"]),
        lambda h: h[NORM].update(shape=[33]),
        lambda h: h[NORM].update(shape=[-32]),
        lambda h: h[NORM].update(shape=[32.0]),
        lambda h: h[NORM].update(shape=[True] * 5),
        lambda h: h[NORM].update(shape=[2**62, 2**62, 4]),
        lambda h: h[NORM].update(shape=[1] * 100_000),
        lambda h: h[NORM].update(shape="32"),
        lambda h: h[NORM].update(data_offsets=[0, 128]),
        lambda h: h[NORM].update(data_offsets=[-128, 0]),
        lambda h: h[NORM].update(data_offsets=[2**63, 2**63 + 128]),
        lambda h: h[NORM].update(data_offsets=[0]),
        lambda h: h[NORM].update(extra=1),
        lambda h: h.update({NORM: None}),
        lambda h: h.update({"more": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
    ],
)
def test_lying_headers(source: Path, refused: Callable[..., None], change: Any) -> None:
    _rewrite_header(source, change)
    refused(source, match=r"model\.safetensors")


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_truncated(source: Path, refused: Callable[..., None], size: int) -> None:
    data = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(data[:size])
    refused(source)


def test_trailing_bytes(source: Path, refused: Callable[..., None]) -> None:
    with (source / WEIGHTS).open("ab") as file:
        file.write(b"\0")
    refused(source, match="end at byte")


def test_gigantic_header_length(source: Path, refused: Callable[..., None]) -> None:
    with (source / WEIGHTS).open("r+b") as file:
        file.write((2**63 - 1).to_bytes(8, "little"))
    refused(source, match="truncated")
    with (source / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 28)  # sparse
        file.write((1 << 27).to_bytes(8, "little"))
    refused(source, match="out of bounds")


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": 1'])
def test_damaged_config(source: Path, refused: Callable[..., None], text: bytes) -> None:
    (source / CONFIG).write_bytes(text)
    refused(source, match=r"config\.json")


def test_damaged_generation_config(source: Path, refused: Callable[..., None]) -> None:
    (source / "generation_config.json").write_text('{"eos_token_id": ["x"]}')
    refused(source, match="eos_token_id")


def test_config_of_another_size(source: Path, refused: Callable[..., None]) -> None:
    values = json.loads((source / CONFIG).read_text())
    (source / CONFIG).write_text(json.dumps({**values, "hidden_size": 64}))
    refused(source, match="expected shape")
    (source / CONFIG).write_text(json.dumps({**values, "num_hidden_layers": 3}))
    refused(source, match="unknown tensor")
    (source / CONFIG).write_text(json.dumps({**values, "num_hidden_layers": 5}))
    refused(source, match="missing")
    (source / CONFIG).write_text(json.dumps({**values, "padding": " " * (17 << 20)}))
    refused(source, match="longer than")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "sharded", max_shard_size="40KB")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../outside.safetensors", "not a safetensors file name"),
        ("/etc/passwd", "not a safetensors file name"),
        ("sub/x.safetensors", "not a safetensors file name"),
        ("..\\x.safetensors", "not a safetensors file name"),
        ("x\0.safetensors", "not a safetensors file name"),
        ("config.json", "not a safetensors file name"),
        (".", "not a safetensors file name"),
        ("absent.safetensors", "No such file"),
        (7, "weight_map"),
        (["x"], "weight_map"),
    ],
)
def test_index_points_elsewhere(
    sharded: Path, refused: Callable[..., None], name: Any, match: str
) -> None:
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"][NORM] = name
    (sharded / INDEX).write_text(json.dumps(index))
    refused(sharded, match=match)


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": "b" * 300}])
def test_damaged_index(sharded: Path, refused: Callable[..., None], weight_map: Any) -> None:
    (sharded / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    refused(sharded, match="index")


def test_index_and_shards_disagree(sharded: Path, refused: Callable[..., None]) -> None:
    index = json.loads((sharded / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    wrong = next(name for name in shards if name != index["weight_map"][NORM])
    changed = {**index["weight_map"], NORM: wrong}
    (sharded / INDEX).write_text(json.dumps({"weight_map": changed}))
    refused(sharded, match="is not in")
    shutil.copy(sharded / shards[0], sharded / "again.safetensors")
    changed = {**index["weight_map"], "extra": "again.safetensors"}
    (sharded / INDEX).write_text(json.dumps({"weight_map": changed}))
    refused(sharded, match="in another file too")


def test_weights_that_are_no_file(source: Path, refused: Callable[..., None]) -> None:
    (source / WEIGHTS).unlink()
    (source / WEIGHTS).mkdir()
    refused(source)
    (source / WEIGHTS).rmdir()
    os.mkfifo(source / WEIGHTS)
    refused(source, match="regular file")


@pytest.mark.parametrize("how", ["overwrite", "truncate"])
def test_file_changes_while_being_read(zoo: Zoo, source: Path, tmp_path: Path, how: str) -> None:
    def meddle(activity: str, done: int, total: int) -> None:
        size = (source / WEIGHTS).stat().st_size
        if how == "truncate":
            os.truncate(source / WEIGHTS, size // 2)
        elif done:
            with (source / WEIGHTS).open("r+b") as file:
                file.seek(-4096, os.SEEK_END)
                file.write(os.urandom(4096))

    before = contents(tmp_path / "zoo")
    with pytest.raises(CheckpointError, match=r"read|truncated|end at"):
        zoo.add("bad", source, progress=meddle)
    assert contents(tmp_path / "zoo") == before


def test_unknown_hub_id(refused: Callable[..., None], zoo: Zoo) -> None:
    with pytest.raises(CheckpointError, match=r"hub|nobody/nothing"):
        zoo.add("bad", "nobody/nothing")


def test_strange_root_is_kept_as_text(zoo: Zoo, source: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"caf\xe9")
    source.rename(strange)
    zoo.add("model", strange)
    assert zoo.card("model").root.endswith("caf?")


def test_not_a_zoo(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="is not a zoo"):
        Zoo(source)
    (tmp_path / "file").write_text("")
    with pytest.raises(ZooError):
        Zoo(tmp_path / "file")
