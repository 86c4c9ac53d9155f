"""The picture of chains: boxes for blocks, in as few pieces as sharing allows."""

from __future__ import annotations

import pytest

from blockllm.zoo import Zoo
from tools.demo import FAMILY, MODELS, ROOT
from tools.pages.draw_chains import draw, draw_zoo, find_boxes, in_order, nbytes


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("picture") / "zoo")
    for name, base in MODELS.items():
        zoo.add(name, FAMILY / name, base=base)
    return zoo


def test_the_committed_picture_is_that_of_the_demo_zoo(zoo: Zoo) -> None:
    committed = (ROOT / "docs/images/chains.svg").read_text(encoding="utf-8")
    assert committed == draw_zoo(zoo), "run `python -m tools.pages.draw_chains` on the demo zoo"


def test_models_that_share_are_neighbours(zoo: Zoo) -> None:
    assert in_order(zoo.chains()) == ["lora-a", "lora-b", "base", "frozen-lower", "full"]


def test_a_shared_block_is_one_box_around_all_its_models(zoo: Zoo) -> None:
    chains = zoo.chains()
    boxes = list(find_boxes([chains[name] for name in in_order(chains)]))
    assert len(boxes) == len({box.block.id for box in boxes})
    assert sorted(box.last_row - box.first_row + 1 for box in boxes) == [1, 1, 1, 1, 3, 4, 4, 4]


def test_a_block_of_models_apart_is_drawn_in_pieces_of_one_colour(zoo: Zoo) -> None:
    chains = zoo.chains()
    pieces = list(find_boxes([chains[name] for name in ("base", "full", "lora-a")]))
    assert sum(box.block.id == pieces[0].block.id for box in pieces) == 2
    assert {box.num_models for box in pieces} == {1, 2}


def test_equal_bytes_count_once(zoo: Zoo) -> None:
    chains = zoo.chains()
    base, tuned = chains["base"], chains["lora-a"]
    assert nbytes(base) < nbytes(base, tuned) < nbytes(base) + nbytes(tuned) - nbytes(base) // 2


def test_names_are_escaped(zoo: Zoo) -> None:
    assert "<b>" not in draw({"<b>": zoo.chain("base")}, {"<b>": 0})
