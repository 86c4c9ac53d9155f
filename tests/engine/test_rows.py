"""Rows that some tokens have of their own: as if the weight had them, bit for bit."""

from __future__ import annotations

import pytest
import torch

from blockllm.core import LoraTarget, RowsTarget
from blockllm.engine.batch.arrays import Segment
from blockllm.engine.layers.embedding import Embedding
from blockllm.engine.layers.linear import SharedLinear
from blockllm.engine.layers.segments import Segments
from blockllm.errors import CorruptStore
from tests.engine.test_changes import CPU, IN, OUT, ROWS, Store

TOKENS = (7, 0, 39)
OWN = slice(2, 6)  # rows of the hop that have own rows of the weight
SEGMENTS = Segments([Segment(2, 6, "a"), Segment(6, 9, "b")], {"a": 0, "b": 1}, ROWS, CPU)


def replaced(store: Store, weight: torch.Tensor, target: RowsTarget) -> torch.Tensor:
    changed = weight.clone()
    changed[list(target.tokens)] = store.load(target.rows)
    return changed


def test_outputs_of_a_linear() -> None:
    store = Store()
    weight, x = store.make(OUT, IN), torch.randn(ROWS, IN)
    target = RowsTarget(store.make(len(TOKENS), IN), TOKENS)
    linear = SharedLinear(("head",), {"head.weight": weight}, store)
    plain = linear(x, SEGMENTS)
    linear.attach([{"head": (target,)}, {}], store)
    whole = store.keep(replaced(store, store.load(weight), target))
    expected = SharedLinear(("head",), {"head.weight": whole}, store)(x, SEGMENTS)
    found = linear(x, SEGMENTS)
    assert torch.equal(found[OWN], expected[OWN])
    assert torch.equal(found[:2], plain[:2]) and torch.equal(found[6:], plain[6:])


def test_updates_are_added_to_own_rows() -> None:
    store = Store()
    weight, x = store.make(OUT, IN), torch.randn(ROWS, IN)
    rows = RowsTarget(store.make(len(TOKENS), IN), TOKENS)
    update = LoraTarget(store.make(3, IN), store.make(OUT, 3), 0.5)
    linear = SharedLinear(("head",), {"head.weight": weight}, store)
    linear.attach([{"head": (rows, update)}, {}], store)
    merged = replaced(store, store.load(weight), rows)
    merged += update.scale * store.load(update.b) @ store.load(update.a)
    torch.testing.assert_close(linear(x, SEGMENTS)[OWN], (x @ merged.T)[OWN])


def test_rows_of_an_embedding() -> None:
    store = Store()
    weight = store.load(store.make(OUT, IN))
    target = RowsTarget(store.make(len(TOKENS), IN), TOKENS)
    embedding = Embedding(weight, torch.float32)
    embedding.attach([{"embed": (target,)}, {}], store)
    tokens = torch.tensor([7, 39, 7, 38, 39, 0, 7, 39, 0, 1, 39])
    found = embedding(tokens, SEGMENTS)
    expected = weight[tokens]
    expected[OWN] = replaced(store, weight, target)[tokens[OWN]]
    assert torch.equal(found, expected)


@pytest.mark.parametrize("tokens", [(7, 0, OUT), (7, 0, -1), (7, 0), ()])
def test_rows_that_do_not_fit(tokens: tuple[int, ...]) -> None:
    store = Store()
    target = RowsTarget(store.make(len(TOKENS), IN), tokens)
    linear = SharedLinear(("head",), {"head.weight": store.make(OUT, IN)}, store)
    embedding = Embedding(store.load(store.make(OUT, IN)), torch.float32)
    with pytest.raises(CorruptStore, match="rows of tokens do not fit"):
        linear.attach([{"head": (target,)}], store)
    with pytest.raises(CorruptStore, match="rows of tokens do not fit"):
        embedding.attach([{"embed": (target,)}], store)
