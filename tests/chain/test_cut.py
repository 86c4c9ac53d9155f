"""Chains cut at every layer: the same model, deltas included."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.chain import one_block_per_layer
from blockllm.core import Target
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint, make_lora


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root: Path = tmp_path_factory.mktemp("cut")
    zoo = Zoo(root / "zoo")
    base = make_checkpoint(root / "base", seed=1)
    zoo.add("base", base)
    zoo.add("tuned", make_lora(base, root / "tuned"), base="base")
    return zoo


def test_layers_and_targets_stay(zoo: Zoo) -> None:
    chain = zoo.chain("tuned")
    cut = one_block_per_layer(chain)
    whole = [layer for entry in chain.entries for layer in entry.block.layers]
    assert [entry.block.layers for entry in cut.entries] == [(layer,) for layer in whole]
    expected: list[dict[str, tuple[Target, ...]]] = []
    for entry in chain.entries:
        for index in range(len(entry.block.layers)):
            targets = entry.delta.targets if entry.delta else {}
            own = {k: t for k, t in targets.items() if k.startswith(f"{index}.")}
            expected.append({"0." + k.partition(".")[2]: t for k, t in own.items()})
    assert [entry.delta.targets if entry.delta else {} for entry in cut.entries] == expected


def test_answers_stay_and_every_layer_is_a_hop(zoo: Zoo) -> None:
    from blockllm.engine import Engine

    found = {}
    for cut in ("lazy", "layers"):
        engine = Engine(zoo, ["base", "tuned"], settings(cut=cut))
        requests = [request(m, m, [5, 6, 7, 8], greedy(6)) for m in ("base", "tuned")]
        found[cut] = {name: answer.tokens for name, answer in run(engine, requests).items()}
    assert found["lazy"] == found["layers"]
    spans = engine.stats().spans
    assert len(spans) == len(zoo.layers("base"))
    assert {span.hops for span in spans} == {engine.stats().turns}
