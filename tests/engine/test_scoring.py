"""Scores through the spans equal the reference's; comparisons follow from them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockllm.engine.score import Scorer, compare
from blockllm.errors import BadRequest, ContextTooLong, EngineError, ModelNotFound
from blockllm.zoo import Zoo
from tests.driver import settings
from tests.makers import make_checkpoint, make_lora
from tests.oracle.reference import load

TOKENS = np.random.default_rng(0).integers(3, 96, 101).tolist()
NAMES = ("base", "tuned", "adapter")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scoring")
    base = make_checkpoint(root / "base", seed=1)
    make_checkpoint(root / "tuned", seed=2, copy_layers_from=base, copied_layers=(0, 1))
    make_lora(base, root / "adapter", target_modules="all-linear")
    return root


@pytest.fixture(scope="module")
def scorer(root: Path) -> Scorer:
    zoo = Zoo(root / "zoo")
    for name in NAMES:
        zoo.add(name, root / name, base="base" if name == "adapter" else None)
    return Scorer(zoo, NAMES, settings(prefix_cache=False))


@torch.inference_mode()
def expected(root: Path, name: str, tokens: list[int] = TOKENS) -> torch.Tensor:
    model: Any = load(root / "base", root / name) if name == "adapter" else load(root / name)
    logits: torch.Tensor = model(input_ids=torch.tensor([tokens])).logits[0]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_the_reference(scorer: Scorer, root: Path, name: str) -> None:
    wanted = expected(root, name)
    found = torch.cat(list(scorer.distributions(name, TOKENS)))
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    scores = scorer.score(name, TOKENS)
    chosen = wanted[:-1].gather(1, torch.tensor(TOKENS[1:])[:, None])[:, 0]
    assert scores.shape == (len(TOKENS) - 1,)
    np.testing.assert_allclose(scores, chosen.numpy(), atol=1e-4)


def test_nothing_is_kept_between_calls(scorer: Scorer) -> None:
    first = scorer.score("base", TOKENS)
    half = scorer.distributions("base", TOKENS)
    next(half)
    scorer.score("tuned", TOKENS[::-1])  # while another is half-way
    half.close()
    np.testing.assert_array_equal(scorer.score("base", TOKENS), first)
    for cache in scorer._parts.caches:
        cache.check_books(idle=True)


def test_a_comparison_follows_from_the_distributions(scorer: Scorer, root: Path) -> None:
    windows = [TOKENS[:70], TOKENS[70:]]
    found = compare(scorer, "tuned", "base", windows)
    ours, theirs, targets = [], [], []
    for window in windows:
        ours.append(expected(root, "tuned", window)[:-1].double())
        theirs.append(expected(root, "base", window)[:-1].double())
        targets += window[1:]
    p, q = torch.cat(theirs), torch.cat(ours)
    picked = torch.tensor(targets)[:, None]
    assert found.num_tokens == len(targets) == 99
    assert found.perplexity == pytest.approx(math.exp(-q.gather(1, picked).mean()), rel=1e-4)
    assert found.reference_perplexity == pytest.approx(
        math.exp(-p.gather(1, picked).mean()), rel=1e-4
    )
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-4)
    assert found.agreement == float((p.argmax(1) == q.argmax(1)).double().mean()) < 1
    same = compare(scorer, "base", "base", windows)
    assert (same.kl, same.agreement) == (0, 1)


def test_refusals(scorer: Scorer) -> None:
    with pytest.raises(ModelNotFound, match="nobody"):
        scorer.score("nobody", TOKENS)
    with pytest.raises(BadRequest, match="0 to 95"):
        scorer.score("base", [96, 1])
    with pytest.raises(ContextTooLong):
        scorer.score("base", TOKENS * 2)
    with pytest.raises(EngineError, match="no two tokens"):
        compare(scorer, "base", "tuned", [[5]])
