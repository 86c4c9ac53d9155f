"""Bridges fit, train and serve: a stitched chain runs through the engine like any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from blockllm.cli.zoo import app
from blockllm.core import BridgeFunction
from blockllm.engine import Engine
from blockllm.engine.score import Scorer, compare
from blockllm.errors import ZooError
from blockllm.offline.stitching.bridge import BridgePowers, Pair, least_squares
from blockllm.offline.stitching.cuts import Cut, check_cut, cost, matching_cuts
from blockllm.offline.stitching.stitch import Stitched, StitchOptions, stitch
from blockllm.offline.training.loop import TrainingSchedule
from blockllm.offline.training.twin import TwinLayer, load_twins, run_layers
from blockllm.zoo import Zoo
from tests.driver import greedy, request, run, settings
from tests.makers import make_checkpoint

TOKENS = np.random.default_rng(0).integers(3, 96, 30).tolist()
TEXT = b"pack my box with five dozen liquor jugs; how vexingly quick daft zebras jump. " * 16
WIDE = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 6, "head_dim": 8}
ALL = (Cut(0, 0), Cut(1, 1), Cut(2, 2), Cut(3, 3), Cut(4, 4))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root = tmp_path_factory.mktemp("stitching")
    zoo = Zoo(root / "zoo")
    zoo.add("narrow", make_checkpoint(root / "narrow", seed=1, tokenizer=True))
    zoo.add("wide", make_checkpoint(root / "wide", seed=2, tokenizer=True, **WIDE))
    other = {**WIDE, "num_key_value_heads": 3}
    zoo.add("other-kv", make_checkpoint(root / "other-kv", seed=3, tokenizer=True, **other))
    zoo.add("more-words", make_checkpoint(root / "more", tokenizer=True, vocab_size=97))
    return zoo


def joining(
    front: str, back: str, cuts: tuple[Cut, ...], name: str, steps: int = 0
) -> StitchOptions:
    return StitchOptions(front, back, cuts, name, TEXT, 32, TrainingSchedule(steps, 3e-3))


def make(zoo: Zoo, options: StitchOptions) -> list[Stitched]:
    return stitch(zoo, options, lambda what, done, total: None)


def pairs(positions: tuple[float, ...], size: int = 6, out: int = 9) -> list[Pair]:
    """Exactly linear in x, with weights that are linear in the position."""
    generator = torch.Generator().manual_seed(0)
    w0, w1 = torch.randn(2, out, size, generator=generator)
    b0, b1 = torch.randn(2, out, generator=generator)
    found = []
    for t in positions:
        x = torch.randn(200, size, generator=generator)
        found.append(Pair(x, x @ (w0 + t * w1).T + b0 + t * b1, t))
    return found


def error(pair: Pair, weights: dict[str, torch.Tensor]) -> float:
    bridge = BridgeFunction(pair.before.shape[1], pair.wanted.shape[1], pair.position)
    found = TwinLayer(bridge, weights)(pair.before)
    return float((found - pair.wanted).pow(2).mean() / pair.wanted.pow(2).mean())


def test_least_squares_finds_weights_that_depend_on_the_position() -> None:
    shown, hidden = pairs((0.0, 0.5, 1.0)), pairs((0.0, 0.5, 1.0, 0.25))[3]
    weights = least_squares(shown, BridgePowers(2, 2))
    assert weights["weight"].shape == (2, 9, 6) and weights["bias"].shape == (2, 9)
    assert max(error(pair, weights) for pair in [*shown, hidden]) < 1e-5
    only_bias = least_squares(shown, BridgePowers(1, 2))
    assert only_bias["weight"].shape == (1, 9, 6)
    assert max(error(pair, only_bias) for pair in shown) > 0.05
    # one position cannot tell the terms apart, and need not
    alone = least_squares(shown[1:2], BridgePowers(3, 2))
    assert error(shown[1], alone) < 1e-5


def test_a_model_stitched_to_itself_is_itself(zoo: Zoo) -> None:
    (made,) = make(zoo, joining("wide", "wide", (Cut(2, 2),), "itself"))
    assert made.loss.kl < 1e-4 and made.loss.agreement > 0.97


def test_a_stitched_chain_is_served_as_its_twin_computes(zoo: Zoo) -> None:
    found = make(zoo, joining("narrow", "wide", ALL, "up"))
    names = [one.name for one in found]
    assert names == ["up-0-0", "up-1-1", "up-2-2", "up-3-3", "up-4-4"]
    scorer = Scorer(zoo, names, settings(prefix_cache=False))
    for name in names:
        with torch.no_grad():
            wanted = run_layers(load_twins(zoo, name), torch.tensor([TOKENS]))[0].log_softmax(-1)
        found_here = torch.cat(list(scorer.distributions(name, TOKENS)))
        torch.testing.assert_close(found_here, wanted, atol=2e-4, rtol=0)
    together = [*names, "narrow", "wide"]
    engine = Engine(zoo, together, settings())
    asked = [request(n, n, TOKENS[:7], greedy(20)) for n in together]
    answers = run(engine, asked)
    for name in together:
        alone = run(Engine(zoo, [name], settings()), [request("x", name, TOKENS[:7], greedy(20))])
        assert answers[name].tokens == alone["x"].tokens
    assert zoo.verify().is_sound


def test_chains_share_the_bridge_and_both_models(zoo: Zoo) -> None:
    cuts = (Cut(1, 1), Cut(3, 3))
    found = make(zoo, joining("wide", "narrow", cuts, "down"))
    wide, narrow = zoo.layers("wide"), zoo.layers("narrow")
    chains = [zoo.layers(one.name) for one in found]
    for cut, layers in zip(cuts, chains, strict=True):
        assert layers[: cut.front + 1] == wide[: cut.front + 1]
        assert layers[cut.front + 2 :] == narrow[cut.back + 1 :]
    bridges = [layers[cut.front + 1] for cut, layers in zip(cuts, chains, strict=True)]
    assert bridges[0].tensors == bridges[1].tensors
    assert [b.function for b in bridges] == [BridgeFunction(48, 32, t) for t in (0.25, 0.75)]
    card = zoo.card(found[0].name)
    assert (card.kind, card.exact, card.loss) == ("stitched", False, (found[0].loss,))
    findings = zoo.findings("stitch", Stitched)
    assert [findings[b.digest, o.name] for b, o in zip(bridges, found, strict=True)] == found
    low, high = sorted(one.cost.flops for one in found)
    bridge = 2 * 48 * 32
    assert found[0].back_cost.flops < low - bridge < high - bridge < found[0].front_cost.flops


def test_training_brings_the_chain_nearer_and_changes_nothing_else(zoo: Zoo) -> None:
    (before,) = make(zoo, joining("narrow", "wide", (Cut(2, 2),), "untrained"))
    (after,) = make(zoo, joining("narrow", "wide", (Cut(2, 2),), "trained", steps=60))
    assert after.loss.kl < 0.9 * before.loss.kl
    layers = zoo.layers("trained")
    assert layers[:3] == zoo.layers("narrow")[:3] and layers[4:] == zoo.layers("wide")[3:]
    kept = compare(Scorer(zoo, ["trained", "wide"]), "trained", "wide", [TOKENS])
    assert kept.kl > 0


def test_a_stopped_training_goes_on(zoo: Zoo, tmp_path: Path) -> None:
    path = tmp_path / "bridge.safetensors"
    task = joining("narrow", "wide", (Cut(1, 1),), "stopped", steps=8)
    task = task._replace(schedule=task.schedule._replace(every=3), checkpoint=path)

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stitch(zoo, task, stop)
    assert path.exists() and "stopped" not in {card.name for card in zoo.cards()}
    steps: list[int] = []
    (resumed,) = stitch(zoo, task, lambda what, done, total: steps.append(done))
    assert [step for step in steps if step] == [4, 5, 6, 7, 8] and not path.exists()
    (whole,) = make(zoo, task._replace(name="whole", checkpoint=None))
    assert zoo.layers("stopped")[2].digest == zoo.layers("whole")[2].digest
    assert resumed.loss.kl == whole.loss.kl


def test_the_gate_keeps_no_worse_chain(zoo: Zoo) -> None:
    task = joining("narrow", "wide", (Cut(0, 0), Cut(4, 4)), "gated")
    open_gate = make(zoo, task._replace(name="open"))
    rises = sorted(one.loss.rise for one in open_gate)
    found = make(zoo, task._replace(max_rise=sum(rises) / 2))
    assert sorted(one.kept for one in found) == [False, True]
    names = {card.name for card in zoo.cards()}
    assert all((one.name in names) == one.kept for one in found)


@pytest.mark.parametrize(
    ("back", "cut", "what"),
    [
        ("wide", Cut(5, 1), "front model has 4 layers: it cannot be cut at 5"),
        ("wide", Cut(1, -1), "back model has 4 layers"),
        ("wide", Cut(0, 4), "leaves no layer"),
        ("other-kv", Cut(2, 2), "2 KV heads of 8 and 3 KV heads of 8"),
        ("more-words", Cut(2, 2), "different vocabularies"),
    ],
)
def test_cuts_that_make_no_chain_are_refused(zoo: Zoo, back: str, cut: Cut, what: str) -> None:
    with pytest.raises(ZooError, match=what):
        make(zoo, joining("narrow", back, (cut,), "never"))
    assert "never" not in {card.name for card in zoo.cards()}


def test_halves_of_one_kind_need_not_agree_in_kv(zoo: Zoo) -> None:
    check_cut(zoo.layers("narrow"), zoo.layers("other-kv"), Cut(4, 4))


def test_cuts_at_matching_depths(zoo: Zoo) -> None:
    narrow, wide = zoo.layers("narrow"), zoo.layers("wide")
    assert matching_cuts(narrow, wide) == list(ALL)
    shorter = (*wide[:3], wide[-1])  # two layers
    assert [cut.back for cut in matching_cuts(narrow, shorter)] == [0, 0, 1, 2, 2]
    assert cost(shorter).nbytes < cost(wide).nbytes


def test_the_command(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKLLM_ZOO", str(zoo.pack_path("x").parents[2]))
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    tail = ["--text", str(text), "--steps", "2", "--window", "32"]

    def command(*words: str) -> Result:
        return CliRunner().invoke(app, ["stitch", *words, *tail])

    found = json.loads(command("narrow@1,2", "wide@1,3", "--name", "typed", "--json").output)
    assert [one["name"] for one in found] == ["typed-1-1", "typed-2-3"]
    shown = command("narrow@all", "wide@all", "--name", "every", "--measured", str(text))
    assert shown.exit_code == 0 and "every-4-4" in shown.output and "MFLOP" in shown.output
    refused = command("narrow@2", "wide@2", "--name", "gated", "--max-rise=-99%")
    assert refused.exit_code == 1 and "not added" in refused.output
    for wrong in ("narrow", "narrow@x", "narrow@all"):
        result = command(wrong, "wide@1", "--name", "never")
        assert isinstance(result.exception, ZooError), wrong
    names = {card.name for card in zoo.cards()}
    assert "typed-2-3" in names and not {"gated", "never"} & names
