"""Drafts of a trained model: pruned, barely distilled, and still no token of the model changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockllm.offline.surrogates.decoding import load
from blockllm.offline.surrogates.speculate import decode_plainly, speculate
from blockllm.offline.surrogates.surrogate import SurrogateOptions, surrogate
from blockllm.offline.training.loop import TrainingSchedule
from blockllm.offline.training.texts import learn_and_measure
from blockllm.zoo import Zoo
from tools.demo import FAMILY

TEXT = (FAMILY / "heldout" / "general.txt").read_bytes()[:12_000]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    zoo = Zoo(tmp_path_factory.mktemp("drafts") / "zoo")
    zoo.add("base", FAMILY / "base")
    return zoo


def test_a_draft_is_accepted_often_and_changes_nothing(zoo: Zoo, tmp_path: Path) -> None:
    options = SurrogateOptions("base", "draft", 0.25, TEXT, 64, TrainingSchedule(4, 1e-3, rows=2))
    made = surrogate(zoo, options, lambda what, done, total: None)
    assert min(one.quality.cosine for one in made.surrogates) > 0.9
    assert made.speculation.acceptance > 0.6
    _, kept = learn_and_measure(zoo, ["base"], TEXT, None, 64)
    parts = load(zoo, ["base", "draft"])
    for prompt in kept[:3, :20].tolist():
        run = speculate(parts, "base", "draft", prompt, 40, 4)
        assert run.tokens == decode_plainly(parts, "base", prompt, 40)
        assert run.verifications < 40
