"""Opening pinned chains: what is loaded is what was resolved, whatever the zoo says by now."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import msgspec
import pytest

from blockllm.chain import decode_chains, encode_chains, fingerprint
from blockllm.cluster.agent import Loaded
from blockllm.cluster.opening import open_engine
from blockllm.config import EngineSettings
from blockllm.core import Chain, Tensor
from blockllm.engine import Engine
from blockllm.errors import CorruptStore, OutOfMemory, ZooError
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run
from tests.makers import make_checkpoint, make_lora

SETTINGS = EngineSettings(
    device="cpu", dtype="float32", memory="8MiB", max_sequences=8, kernels="plain"
)
MODELS = ("base", "other", "lora")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and a zoo of a base, another model and an adapter; tests must not change it."""
    path = tmp_path_factory.mktemp("sources")
    base = make_checkpoint(path / "base", seed=1, num_hidden_layers=2)
    make_checkpoint(path / "other", seed=2, num_hidden_layers=2)
    make_checkpoint(path / "third", "qwen3", seed=3, num_hidden_layers=2, head_dim=16)
    make_lora(base, path / "lora")
    zoo = Zoo(path / "zoo")
    for name in MODELS:
        zoo.add(name, path / name, base="base" if name == "lora" else None)
    return path


@pytest.fixture
def zoo(sources: Path, tmp_path: Path) -> Zoo:
    shutil.copytree(sources / "zoo", tmp_path / "zoo")
    return Zoo(tmp_path / "zoo")


def pin(zoo: Zoo) -> dict[str, Chain]:
    """The chains as an agent process gets them."""
    with zoo.moment() as moment:
        return decode_chains(encode_chains(moment.chains(MODELS).values()))


def open_in(folder: Path, chains: dict[str, Chain]) -> Loaded:
    return open_engine(str(folder), chains, SETTINGS)


def answers(loaded: Loaded) -> dict[str, list[int]]:
    asked = [request(name, name, (5, 6, 7), greedy(6)) for name in loaded.fingerprints]
    assert isinstance(loaded.engine, Engine)
    return {name: answer.tokens for name, answer in run(loaded.engine, asked).items()}


def test_a_replaced_model_stays_what_was_pinned(zoo: Zoo, sources: Path, tmp_path: Path):
    chains = pin(zoo)
    before = open_in(tmp_path / "zoo", chains)
    zoo.remove("other")
    zoo.add("other", sources / "third")
    after = open_in(tmp_path / "zoo", chains)
    assert after.fingerprints == before.fingerprints
    assert answers(after) == answers(before)
    assert fingerprint(zoo.chain("other")) != after.fingerprints["other"]


def test_removed_models_are_served_while_their_packs_exist(zoo: Zoo, tmp_path: Path):
    chains = pin(zoo)
    before = open_in(tmp_path / "zoo", chains)
    zoo.remove("lora")
    after = open_in(tmp_path / "zoo", chains)
    assert (answers(after), dict(after.left_out)) == (answers(before), {})


def test_a_model_whose_packs_are_gone_is_left_out_alone(
    zoo: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    chains = pin(zoo)
    before = answers(open_in(tmp_path / "zoo", chains))
    zoo.remove("lora")
    zoo.remove("other")
    zoo.gc()
    after = open_in(tmp_path / "zoo", chains)
    assert answers(after) == {"base": before["base"]}
    assert set(after.left_out) == {"lora", "other"}
    assert all("gone from the zoo" in reason for reason in after.left_out.values())
    assert "'lora' is left out" in caplog.text and "'other' is left out" in caplog.text


def test_a_pack_that_is_too_short_leaves_its_models_out(zoo: Zoo, tmp_path: Path):
    chains = pin(zoo)
    (tensor, *_) = chains["lora"].entries[1].delta.tensors()  # type: ignore[union-attr]
    path = zoo.pack_path(tensor.pack)
    path.write_bytes(path.read_bytes()[:100])
    assert dict(open_in(tmp_path / "zoo", chains).left_out) == {
        "lora": f"its weights are damaged (pack {tensor.pack[:12]}…)"
    }


def test_without_any_weights_nothing_is_made_and_the_reason_is_said(tmp_path: Path, sources: Path):
    chains = pin(Zoo(sources / "zoo"))
    with pytest.raises(CorruptStore, match="base: its weights are gone from the zoo"):
        open_in(tmp_path / "nowhere", chains)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("state", ["damaged", "newer", "absent"])
def test_the_catalogue_does_not_matter_any_more(zoo: Zoo, tmp_path: Path, state: str):
    chains = pin(zoo)
    if state == "newer":
        with sqlite3.connect(tmp_path / "zoo" / "catalog.sqlite") as connection:
            connection.execute("PRAGMA user_version = 99")
        connection.close()
        with pytest.raises(ZooError, match="has format 99; this program reads"):
            Zoo(tmp_path / "zoo")
    for path in (tmp_path / "zoo").glob("catalog.sqlite*") if state != "newer" else ():
        path.unlink() if state == "absent" else path.write_bytes(b"no database")
    assert set(open_in(tmp_path / "zoo", chains).fingerprints) == set(MODELS)


def test_progress_counts_the_bytes_of_distinct_tensors(zoo: Zoo, tmp_path: Path):
    told: list[tuple[str, int, int]] = []
    chains = pin(zoo)
    open_engine(str(tmp_path / "zoo"), chains, SETTINGS, lambda *what: told.append(what))
    distinct = {t.hash: t.nbytes for chain in chains.values() for t in chain.tensors()}
    assert {activity for activity, _, _ in told} == {"loading bytes of weights"}
    done = [done for _, done, _ in told]
    assert done == sorted(done) and done[-1] == sum(distinct.values())
    assert {total for _, _, total in told} == {sum(distinct.values())}


def test_errors_of_the_engine_stay_what_they_are(zoo: Zoo, tmp_path: Path):
    with pytest.raises(OutOfMemory):
        open_engine(str(tmp_path / "zoo"), pin(zoo), EngineSettings(memory="1KiB", device="cpu"))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def own_tensors(chains: dict[str, Chain], name: str) -> list[Tensor]:
    """The tensors that only this model has."""
    others = {t.hash for other, chain in chains.items() if other != name for t in chain.tensors()}
    return [tensor for tensor in chains[name].tensors() if tensor.hash not in others]


def test_flipped_bytes_leave_their_models_out_and_others_go_on(
    zoo: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    chains = pin(zoo)
    before = answers(open_in(tmp_path / "zoo", chains))
    for name in ("lora", "other"):
        tensor = own_tensors(chains, name)[-1]
        flip(zoo.pack_path(tensor.pack), tensor.offset + tensor.nbytes - 1)
    after = open_in(tmp_path / "zoo", chains)
    assert answers(after) == {"base": before["base"]}
    assert set(after.left_out) == {"lora", "other"}
    assert all("weights are damaged (pack" in reason for reason in after.left_out.values())
    assert str(tmp_path) not in str(dict(after.left_out))
    assert "'lora' is left out" in caplog.text


def test_all_flipped_is_an_error(zoo: Zoo, tmp_path: Path):
    chains = pin(zoo)
    for pack in {tensor.pack for chain in chains.values() for tensor in chain.tensors()}:
        flip(zoo.pack_path(pack), 0)
    with pytest.raises(CorruptStore, match="no model can be loaded"):
        open_in(tmp_path / "zoo", chains)


def test_without_verifying_packs_are_mapped_as_they_are(zoo: Zoo, tmp_path: Path):
    chains = pin(zoo)
    tensor = own_tensors(chains, "lora")[-1]
    flip(zoo.pack_path(tensor.pack), tensor.offset + tensor.nbytes - 1)
    settings = msgspec.structs.replace(SETTINGS, verify_weights=False)
    loaded = open_engine(str(tmp_path / "zoo"), chains, settings)
    assert set(loaded.fingerprints) == set(MODELS) and not loaded.left_out
    zoo.pack_path(tensor.pack).write_bytes(b"")  # truncation is found all the same
    assert set(open_engine(str(tmp_path / "zoo"), chains, settings).left_out) == {"lora"}


def test_what_happens_to_packs_that_were_loaded_does_not_matter(zoo: Zoo, tmp_path: Path):
    chains = pin(zoo)
    loaded = open_in(tmp_path / "zoo", chains)
    before = answers(open_in(tmp_path / "zoo", chains))
    for path in (tmp_path / "zoo").glob("packs/*/*"):
        size = path.stat().st_size
        path.write_bytes(b"")  # in place, as another program's write would
        path.write_bytes(b"\xff" * (size // 2))
    assert answers(loaded) == before
