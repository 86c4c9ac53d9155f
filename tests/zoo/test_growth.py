"""What a command reads does not grow with models that it is not about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blockllm.zoo import Zoo, snapshot
from tests.makers import make_checkpoint, make_lora

Settings = list[dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three adapters of q_proj and v_proj, and one of the upper two layers."""
    root = tmp_path_factory.mktemp("growth")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / "base")
    zoo.add("base", base)
    for seed in range(3):
        adapter = make_lora(base, root / f"lora-{seed}", seed=seed)
        zoo.add(f"lora-{seed}", adapter, base="base")
    upper = make_lora(base, root / "upper", layers_to_transform=[2, 3])
    zoo.add("upper", upper, base="base")
    return root


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of every target that is made of the catalogue's rows from now on."""
    made: Settings = []
    make = snapshot.make_target

    def count(settings: dict[str, Any], parts: dict[str, Any]) -> Any:
        made.append(settings)
        return make(settings, parts)

    monkeypatch.setattr(snapshot, "make_target", count)
    return made


def test_adding_an_adapter_reads_no_other(folder: Path, asked: Settings) -> None:
    zoo = Zoo(folder / "zoo")
    report = zoo.add("again", folder / "lora-0", base="base")
    zoo.remove("again")
    assert not asked
    assert (report.num_blocks, report.num_shared_blocks) == (4, 4)


def test_adding_guesses_the_base_without_reading_adapters(folder: Path, asked: Settings) -> None:
    zoo = Zoo(folder / "zoo")
    zoo.add("guessed", folder / "lora-0")
    assert not asked and zoo.card("guessed").parent == "base"
    zoo.remove("guessed")


def test_listing_decodes_no_target(folder: Path, asked: Settings) -> None:
    cards = Zoo(folder / "zoo").cards()
    assert [card.name for card in cards] == ["base", "lora-0", "lora-1", "lora-2", "upper"]
    assert not asked


def test_a_chain_decodes_its_own_targets(folder: Path, asked: Settings) -> None:
    zoo = Zoo(folder / "zoo")
    chain = zoo.chain("upper")
    targets = [t for e in chain.entries if e.delta for t in e.delta.targets.values()]
    assert len(asked) == len(targets) == 4
    with zoo.moment() as moment:
        moment.chains(["upper", "base"])
    assert len(asked) == 8


def test_outlines_cut_the_blocks_of_models_that_are_not_read(folder: Path) -> None:
    """The adapter of the upper layers cuts the base's run, asked for or not."""
    zoo = Zoo(folder / "zoo")
    sizes = [len(entry.block.layers) for entry in zoo.chain("base").entries]
    assert sizes == [1, 2, 2, 1]
    assert zoo.chains(["base"])["base"] == zoo.chains()["base"]


def test_sizes_of_models_alike_are_those_of_their_tensors(folder: Path) -> None:
    zoo = Zoo(folder / "zoo")
    tensors = {}
    for name, chain in zoo.chains().items():
        own = [t for e in chain.entries if e.delta for t in e.delta.tensors()]
        own += [t for e in chain.entries for x in e.block.layers for t in x.tensors.values()]
        tensors[name] = {t.hash: t.nbytes for t in own}
    for card in zoo.cards():
        mine = tensors[card.name]
        others = [have for name, have in tensors.items() if name != card.name]
        own_bytes = sum(n for h, n in mine.items() if not any(h in have for have in others))
        assert (card.total_bytes, card.own_bytes) == (sum(mine.values()), own_bytes)
