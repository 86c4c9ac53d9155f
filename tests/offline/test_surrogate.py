"""Twins equal the engine, surrogates are smaller and fit, and drafts never change a token."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from blockllm.cli.zoo import app
from blockllm.core import LayerFunction
from blockllm.engine.score import Scorer
from blockllm.errors import ZooError
from blockllm.offline.surrogates.decoding import load
from blockllm.offline.surrogates.make import decoders
from blockllm.offline.surrogates.prune import Scores, kept_heads, prune, taylor_scores
from blockllm.offline.surrogates.speculate import (
    Speculation,
    decode_plainly,
    expected_tokens,
    num_agreed,
    speculate,
)
from blockllm.offline.surrogates.surrogate import SurrogateFound, SurrogateOptions, surrogate
from blockllm.offline.training.loop import TrainingSchedule, batch_rows, train
from blockllm.offline.training.twin import load_twins, run_layers
from blockllm.zoo import Zoo
from tests.makers import make_checkpoint

TOKENS = np.random.default_rng(0).integers(3, 96, 40).tolist()
TEXT = b"the quick brown fox jumps over the lazy dog, and the dog does not mind. " * 12
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    root = tmp_path_factory.mktemp("surrogates")
    zoo = Zoo(root / "zoo")
    for family in FAMILIES:
        extra = {"sliding_window": 7} if family == "mistral" else {}
        zoo.add(family, make_checkpoint(root / family, family, tokenizer=True, **extra))
    zoo.add("int8", root / "llama", format="int8")
    return zoo


@pytest.mark.parametrize("family", FAMILIES)
def test_the_twin_equals_the_engine(zoo: Zoo, family: str) -> None:
    expected = torch.cat(list(Scorer(zoo, [family]).distributions(family, TOKENS)))
    with torch.no_grad():
        found = run_layers(load_twins(zoo, family), torch.tensor([TOKENS]))[0].log_softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_the_twin_of_int8_is_near_the_engine(zoo: Zoo) -> None:
    expected = torch.cat(list(Scorer(zoo, ["int8"]).distributions("int8", TOKENS)))
    with torch.no_grad():
        found = run_layers(load_twins(zoo, "int8"), torch.tensor([TOKENS]))[0].log_softmax(-1)
    assert float((found.exp() * (found - expected)).sum(-1).mean()) < 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_pruning_units_that_do_nothing_changes_nothing(zoo: Zoo, family: str) -> None:
    layers = load_twins(zoo, family)
    layer = layers[2]
    function = layer.function
    assert isinstance(function, LayerFunction)
    heads, channels = torch.ones(function.num_heads), torch.ones(function.intermediate_size)
    heads[[0, 3]] = channels[:24] = 0
    size = function.head_dim
    weights = {name: weight.clone() for name, weight in layer.weights.items()}
    for head in (0, 3):
        weights["self_attn.o_proj.weight"][:, head * size : (head + 1) * size] = 0
    weights["mlp.down_proj.weight"][:, :24] = 0
    layer.weights = weights
    smaller = prune(layer, Scores(heads, channels), 0.5)
    assert isinstance(smaller.function, LayerFunction)
    assert (smaller.function.num_heads, smaller.function.intermediate_size) == (2, 24)
    assert smaller.function.num_kv_heads == function.num_kv_heads
    x = torch.randn(2, 9, function.hidden_size)
    torch.testing.assert_close(smaller(x), layer(x), atol=1e-5, rtol=0)


def test_scores_find_units_that_do_nothing(zoo: Zoo) -> None:
    layers = load_twins(zoo, "llama")
    weights = layers[2].weights
    weights["mlp.down_proj.weight"] = weights["mlp.down_proj.weight"].clone()
    weights["mlp.down_proj.weight"][:, 5] = 0
    found = taylor_scores(layers, [torch.tensor([TOKENS])])
    assert len(found) == len(decoders(layers)) == 4
    assert found[1].channels.argmin() == 5 and found[1].channels[5] == 0
    assert bool((found[0].heads > 0).all())
    assert layers[2].channel_gate is None


@given(
    st.integers(1, 4), st.integers(1, 8), st.floats(0.01, 0.95), st.integers(0, 100)
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_every_group_of_heads_keeps_equally_many(
    groups: int, size: int, ratio: float, seed: int
) -> None:
    importance = torch.rand(groups * size, generator=torch.Generator().manual_seed(seed))
    function = msgspec.convert(
        {"kind": "decoder", "hidden_size": 1, "intermediate_size": 1, "num_heads": groups * size,
         "num_kv_heads": groups, "head_dim": 2, "norm_eps": 1e-5, "rope": {"theta": 1e4}},
        LayerFunction,
    )  # fmt: skip
    kept = kept_heads(importance, function, ratio)
    counts = np.bincount(kept.numpy() // size, minlength=groups)
    assert len(set(counts.tolist())) == 1 and counts[0] >= 1
    assert kept.tolist() == sorted(kept.tolist())
    for group in range(groups):
        own = importance[group * size : (group + 1) * size]
        inside = [i for i in kept.tolist() if i // size == group]
        assert min(importance[inside]) >= own.sort(descending=True).values[len(inside) - 1]


def test_a_draft_in_the_zoo_changes_no_token(zoo: Zoo) -> None:
    before = {card.name for card in zoo.cards()}
    options = SurrogateOptions(
        "llama", "small", 0.5, TEXT, 32, TrainingSchedule(30, 3e-3, rows=4), gamma=3
    )
    made = surrogate(zoo, options, lambda what, done, total: None)
    assert len(made.surrogates) == 4
    card = zoo.card("small")
    assert (card.kind, card.exact) == ("draft", False)
    assert card.loss == (made.loss,) and made.loss.reference == "llama"
    own, smaller = zoo.layers("llama"), zoo.layers("small")
    assert own[0] == smaller[0] and own[-1] == smaller[-1]
    found = zoo.findings("surrogate", SurrogateFound)
    assert set(found) == {(s.digest, r.digest) for s, r in zip(smaller, own, strict=True)} - {
        (own[0].digest, own[0].digest), (own[-1].digest, own[-1].digest)
    }  # fmt: skip
    for one in found.values():
        assert (one.num_heads, one.intermediate_size, one.ratio) == (2, 24, 0.5)
        assert 0.4 < one.parameters_saved < 0.6
        assert 0 < one.quality.cosine < 1 and one.quality.kl > 0
    worth = zoo.findings("speculation", Speculation)["small", "llama"]
    assert worth == made.speculation and worth.gamma == 3
    assert 1 <= worth.tokens_per_verification <= 4 and worth.verify_seconds > 0
    parts = load(zoo, ["llama", "small"])
    for gamma in (1, 4):
        run = speculate(parts, "llama", "small", TOKENS[:9], 50, gamma)
        assert run.tokens == decode_plainly(parts, "llama", TOKENS[:9], 50)
        assert run.drafted == gamma * run.verifications
        assert run.accepted <= run.judged <= run.drafted
        assert run.accepted + run.verifications >= 50
    itself = speculate(parts, "llama", "llama", TOKENS[:9], 50, 4)
    assert itself.accepted == itself.drafted and itself.verifications == 10
    for cache in parts.caches:
        cache.check_books(idle=True)
    assert {card.name for card in zoo.cards()} == before | {"small"}
    assert zoo.verify().is_sound


def test_distillation_helps_and_a_gate_refuses(zoo: Zoo) -> None:
    def kl(steps: int) -> float:
        options = SurrogateOptions(
            "qwen3", f"d{steps}", 0.5, TEXT, 32, TrainingSchedule(steps, 3e-3)
        )
        return surrogate(zoo, options, lambda what, done, total: None).loss.kl

    assert kl(60) < 0.7 * kl(0)
    options = SurrogateOptions(
        "qwen3", "never", 0.9, TEXT, 32, TrainingSchedule(0, 1e-3), min_agreement=0.999
    )
    with pytest.raises(ZooError, match=r"agree with qwen3's at \d+\.\d+% of tokens"):
        surrogate(zoo, options, lambda what, done, total: None)
    assert "never" not in {card.name for card in zoo.cards()}
    with pytest.raises(ZooError, match="more text"):
        surrogate(zoo, options._replace(text=b"tiny"), lambda what, done, total: None)


def test_a_stopped_training_goes_on_as_if_it_had_not(tmp_path: Path) -> None:
    windows = torch.arange(40).view(10, 4)

    def run(stop_at: int | None, schedule: TrainingSchedule, task: str = "t") -> torch.Tensor:
        weight = torch.ones(4, requires_grad=True)

        def loss_of(ids: torch.Tensor, step: int) -> torch.Tensor:
            if step == stop_at:
                raise KeyboardInterrupt
            return ((ids.float() @ weight).mean() - step).pow(2)

        train({"w": weight}, loss_of, windows, schedule, task, tmp_path / "c.safetensors")
        return weight.detach()

    schedule = TrainingSchedule(12, 0.05, rows=3, every=5)
    whole = run(None, schedule)
    with pytest.raises(KeyboardInterrupt):
        run(8, schedule)
    with pytest.raises(ZooError, match="another training"):
        run(None, schedule, "other")
    with pytest.raises(KeyboardInterrupt):  # it starts at step 5, not anew
        run(5, schedule)
    torch.testing.assert_close(run(None, schedule), whole, atol=0, rtol=0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "c.safetensors").write_bytes(b"damaged")
    with pytest.raises(ZooError, match="not a checkpoint"):
        run(None, schedule)


def test_every_epoch_takes_every_window_once() -> None:
    schedule = TrainingSchedule(10, 0.1, rows=3)
    taken = torch.cat([batch_rows(5, schedule, step) for step in range(10)])
    for epoch in taken.view(6, 5):
        assert sorted(epoch.tolist()) == [0, 1, 2, 3, 4]
    assert len({tuple(epoch.tolist()) for epoch in taken.view(6, 5)}) > 1


def test_speculation_pays_where_passes_wait() -> None:
    found = Speculation(4, 0.8, 3.0, 0.002, 0.004, 0.008)
    assert found.speedup() == pytest.approx(3 * 0.004 / (4 * 0.002 + 0.008))
    pays = found.delay_to_pay()
    assert pays == pytest.approx(0.002) and found.speedup(pays) == pytest.approx(1)
    assert found.speedup(0.01) > 1 and found.speedup(1e3) == pytest.approx(3, rel=1e-3)
    useless = Speculation(4, 0.0, 1.0, 0.002, 0.004, 0.008)
    assert useless.delay_to_pay() == float("inf")
    assert Speculation(4, 1.0, 5.0, 0.0001, 0.004, 0.005).delay_to_pay() == 0


def test_counting() -> None:
    assert [num_agreed([1, 2, 3], c) for c in ([1, 2, 3, 9], [1, 5, 3, 9], [4, 2, 3, 9])] == [
        3,
        1,
        0,
    ]
    assert expected_tokens(0.0, 4) == 1 and expected_tokens(1.0, 4) == 5
    assert expected_tokens(0.5, 2) == pytest.approx((1 - 0.5**3) / (1 - 0.5))


def test_the_command(zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOCKLLM_ZOO", str(zoo.pack_path("x").parents[2]))
    text = tmp_path / "text.txt"
    text.write_bytes(TEXT)
    words = ["surrogate", "qwen2", "--ratio", "0.25", "--ratio", "0.5", "--text", str(text)]
    words += ["--steps", "2", "--window", "32", "--gamma", "2", "--draft", "q"]
    words += ["--checkpoints", str(tmp_path / "checkpoints")]
    made = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert [one["name"] for one in made] == ["q-25", "q-50"]
    assert made[0]["surrogates"][0]["intermediate_size"] == 40
    shown = CliRunner().invoke(app, [*words, "--draft", "r", "--measured", str(text)])
    assert shown.exit_code == 0 and "tokens per verification" in shown.output
