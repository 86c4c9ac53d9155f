"""`verify` sees every flipped byte, every missing or shortened file."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from blockllm.errors import CorruptStore, ZooError
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint, make_lora


@pytest.fixture
def filled(zoo: Zoo, tmp_path: Path) -> Zoo:
    """A base whose small norms make gaps in its packs, a sibling, and an adapter."""
    base = make_checkpoint(tmp_path / "base", "qwen3", num_hidden_layers=2, tokenizer=True)
    sibling = make_checkpoint(
        tmp_path / "sibling", "qwen3", seed=1, num_hidden_layers=2, copy_layers_from=base
    )
    zoo.add("base", base)
    zoo.add("sibling", sibling)
    zoo.add("adapter", make_lora(base, tmp_path / "adapter"), base="base")
    assert zoo.verify().is_sound
    return zoo


def packs(root: Path) -> list[Path]:
    return sorted((root / "zoo" / "packs").rglob("*.pack"))


def test_every_flipped_byte(filled: Zoo, tmp_path: Path) -> None:
    chooser = random.Random(0)
    gaps = 0
    for path in packs(tmp_path):
        data = path.read_bytes()
        places = {0, len(data) - 1, *(chooser.randrange(len(data)) for _ in range(5))}
        gaps += data.find(bytes(32)) > 0
        places |= {data.find(bytes(32))} - {-1}
        for place in places:
            flipped = bytearray(data)
            flipped[place] ^= 1 << chooser.randrange(8)
            path.write_bytes(flipped)
            report = filled.verify()
            assert [problem.where for problem in report.problems] == [f"pack {path.stem}"]
        path.write_bytes(data)
    assert gaps
    assert filled.verify().is_sound


def test_affected_models_are_named(filled: Zoo, tmp_path: Path) -> None:
    chain = filled.chain("adapter")
    shared = chain.entries[0].block.layers[0].tensors["weight"].pack
    delta = chain.entries[1].delta
    assert delta is not None
    own = delta.tensors()[0].pack
    for pack, models in ((shared, ("base", "sibling", "adapter")), (own, ("adapter",))):
        path = filled.pack_path(pack)
        data = path.read_bytes()
        for damaged in (data[:-1], data + b"\0", b"", None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            problems = filled.verify().problems
            assert problems
            assert {problem.models for problem in problems} == {models}
            path.write_bytes(data)
    assert filled.verify().is_sound


def test_assets(filled: Zoo) -> None:
    path = filled.asset("base", "tokenizer.json")
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    (problem,) = filled.verify().problems
    assert (problem.where, problem.models) == (f"asset {path.name}", ("base",))
    path.unlink()
    assert len(filled.verify().problems) == 1


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE layer SET function = json_set(function, '$.vocab_size', 97)",
        "UPDATE tensor SET offset = offset + 64",
        "UPDATE tensor SET offset = 64",
        "UPDATE tensor SET offset = 1 << 40",
        "UPDATE layer_tensor SET tensor = (SELECT hash FROM tensor ORDER BY hash LIMIT 1)",
    ],
)
def test_changed_catalogue(filled: Zoo, tmp_path: Path, change: str) -> None:
    with sqlite3.connect(tmp_path / "zoo" / "catalog.sqlite") as connection:
        connection.execute(change)
    connection.close()
    assert not filled.verify().is_sound


def test_damaged_catalogue(filled: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "zoo" / "catalog.sqlite"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(CorruptStore):
        Zoo(tmp_path / "zoo")


def test_another_format(filled: Zoo, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "zoo" / "catalog.sqlite") as connection:
        connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(ZooError, match="format 7"):
        Zoo(tmp_path / "zoo")


def test_damage_is_repaired_by_adding_again(zoo: Zoo, llama: Path, tmp_path: Path) -> None:
    zoo.add("model", llama)
    packs(tmp_path)[0].unlink()
    with pytest.raises(CorruptStore, match="gc"):
        zoo.add("again", llama)
    zoo.remove("model")
    zoo.gc()
    zoo.add("again", llama)
    assert zoo.verify().is_sound
