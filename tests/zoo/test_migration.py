"""Catalogues of older formats are brought up to date, and nothing in them changes."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

import blockllm.zoo.catalog
from blockllm.core import ModelCard
from blockllm.zoo import Zoo
from blockllm.zoo.catalog import Catalog
from tests.makers import make_lora

_COPIED = {
    "model": "id, name, CASE kind WHEN 'full' THEN 'full' ELSE 'lora' END, family, parent, root,"
    " dtype, max_context, eos_ids, created",
    "tensor": "*",
    "layer": "digest, function, '', 0",
    "layer_tensor": "*",
    "model_layer": "*",
    "asset": "*",
}
_TARGETS = (
    "INSERT INTO old.target SELECT model, position, module, a.tensor, b.tensor, bias.tensor,"
    " json_extract(value, '$.scale') FROM target t"
    " JOIN target_tensor a ON a.target = t.id AND a.part = 'a'"
    " JOIN target_tensor b ON b.target = t.id AND b.part = 'b'"
    " LEFT JOIN target_tensor bias ON bias.target = t.id AND bias.part = 'bias'"
)


def make_older(catalog: Path, version: int) -> None:
    """Write the catalogue again as the first versions of the program wrote it."""
    old = catalog.with_name("old.sqlite")
    scripts = Path(blockllm.zoo.catalog.__file__).parent
    with sqlite3.connect(old) as connection:
        for name in ("schema.sql", "measurement.sql", "deltas.sql")[:version]:
            connection.executescript((scripts / name).read_text("utf-8"))
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    with sqlite3.connect(catalog) as connection:
        connection.execute("ATTACH ? AS old", [str(old)])
        for table, columns in _COPIED.items():
            connection.execute(f"INSERT INTO old.{table} SELECT {columns} FROM main.{table}")
        connection.execute(_TARGETS)
    connection.close()
    for path in catalog.parent.glob("catalog.sqlite*"):
        path.unlink()
    old.rename(catalog)


def make_unsealed(connection: sqlite3.Connection, version: int) -> None:
    """Take away the checksums that formats before 5 did not have."""
    for table in ("model", "finding"):
        connection.execute(f"ALTER TABLE {table} DROP COLUMN seal")
    connection.execute(f"PRAGMA user_version = {version}")


def test_what_had_no_checksums_is_sealed_and_keeps_its_ends(
    zoo: Zoo, tmp_path: Path, llama: Path
) -> None:
    zoo.add("model", llama)
    zoo.record_finding("kind", "a", "b", zoo.card("model"))
    catalog = tmp_path / "zoo" / "catalog.sqlite"
    with sqlite3.connect(catalog) as connection:
        connection.execute("UPDATE model SET eos_ids = '[5]'")  # renewal of ends would add others
        make_unsealed(connection, 4)
    connection.close()
    again = Zoo(tmp_path / "zoo")
    assert again.chain("model").eos_ids == (5,)
    assert len(again.findings("kind", ModelCard)) == 1
    assert again.verify().is_sound


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_catalogue_is_brought_up_to_date(
    zoo: Zoo, tmp_path: Path, llama: Path, version: int
) -> None:
    zoo.add("model", llama)
    zoo.add("rounded", llama, format="int8")
    zoo.add("tuned", make_lora(llama, tmp_path / "lora", lora_alpha=3.7), base="model")
    before, cards = zoo.chains(), zoo.cards()
    make_older(tmp_path / "zoo" / "catalog.sqlite", version)
    assert not Catalog(tmp_path / "zoo" / "catalog.sqlite").is_ready()
    again = Zoo(tmp_path / "zoo")
    assert again.chains() == before
    assert again.cards() == cards
    assert [card.exact for card in cards] == [True, False, True]
    assert again.verify().is_sound
    again.remove("tuned")
    assert again.gc().num_files == 1


def test_ends_that_older_formats_did_not_look_for_are_found(zoo: Zoo, tmp_path: Path, llama: Path):
    base = shutil.copytree(llama, tmp_path / "base")
    (base / "tokenizer_config.json").write_text('{"eos_token": "!"}')  # id 3
    adapter = make_lora(llama, tmp_path / "lora")
    (adapter / "generation_config.json").write_text('{"eos_token_id": [7, 200]}')
    damaged = shutil.copytree(llama, tmp_path / "damaged")
    text = (damaged / "tokenizer.json").read_text()
    (damaged / "tokenizer.json").write_text(text + " ")
    zoo.add("base", base)
    zoo.add("tuned", adapter, base="base")
    zoo.add("again", make_lora(llama, tmp_path / "again"), base="tuned")
    zoo.add("damaged", damaged)
    zoo.assemble("made", "base", zoo.layers("base"))
    before = {name: chain.eos_ids for name, chain in zoo.chains().items()}
    assert before["tuned"] == before["again"] == (7, 2, 3)
    path = zoo.asset("damaged", "tokenizer.json")
    assert path is not None
    catalog = tmp_path / "zoo" / "catalog.sqlite"
    with sqlite3.connect(catalog) as connection:
        connection.execute("UPDATE model SET eos_ids = '[2]'")
        make_unsealed(connection, 3)
    connection.close()
    path.write_text("{")
    again = Zoo(tmp_path / "zoo")
    assert {name: chain.eos_ids for name, chain in again.chains().items()} == before
    assert Catalog(catalog).is_ready()
