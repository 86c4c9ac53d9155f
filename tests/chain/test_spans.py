"""Spans are maximal runs of blocks with the same riders; routes put the chains together again."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from blockllm.chain import SpanPlan, plan_spans
from blockllm.core import Block, Chain, ChainEntry, EmbedFunction, HeadFunction, Layer


def make_chain(model: str, ids: str) -> Chain:
    """One block per letter; function and tensors do not matter here."""
    head = HeadFunction(vocab_size=8, hidden_size=4, norm_eps=1e-5)
    embed = EmbedFunction(vocab_size=8, hidden_size=4)
    blocks = [Block(c, (Layer(c, head if c == "h" else embed, {}),)) for c in ids]
    return Chain(model, tuple(ChainEntry(block) for block in blocks), max_context=8)


def spell(plan: SpanPlan, model: str) -> list[str]:
    route = plan.routes[model]
    return ["".join(b.id for b in plan.spans[stop.span].blocks) for stop in route.stops]


def test_a_single_model_is_one_span() -> None:
    plan = plan_spans([make_chain("a", "exyh")])
    assert spell(plan, "a") == ["exyh"]


def test_models_part_and_meet_again_at_a_shared_head() -> None:
    plan = plan_spans([make_chain("a", "exyh"), make_chain("b", "exzh")])
    assert spell(plan, "a") == ["ex", "y", "h"]
    assert spell(plan, "b") == ["ex", "z", "h"]
    assert plan.spans[plan.routes["a"].stops[-1].span].models == ("a", "b")
    assert [stop.depth for stop in plan.routes["b"].stops] == [0, 2, 3]


def test_a_block_repeated_in_one_chain_stays_apart() -> None:
    plan = plan_spans([make_chain("a", "exxh")])
    assert spell(plan, "a") == ["e", "x", "x", "h"]


@given(st.lists(st.text("uvwxyz", min_size=1, max_size=6), min_size=1, max_size=5))
def test_routes_spell_the_chains_and_no_two_neighbouring_spans_could_merge(
    middles: list[str],
) -> None:
    chains = [make_chain(str(i), f"e{middle}h") for i, middle in enumerate(middles)]
    plan = plan_spans(chains)
    follows: dict[str, set[str]] = {}
    precedes: dict[str, set[str]] = {}
    for chain, middle in zip(chains, middles, strict=True):
        text = f"e{middle}h"
        assert "".join(spell(plan, chain.model)) == text
        for left, right in zip("^" + text, text + "$", strict=True):
            follows.setdefault(left, set()).add(right)
            precedes.setdefault(right, set()).add(left)
    for chain in chains:
        way = spell(plan, chain.model)
        for left, right in itertools.pairwise(way):
            together = follows[left[-1]] == {right[0]} and precedes[right[0]] == {left[-1]}
            assert not together


def test_unmerged_blocks_are_spans_of_their_own() -> None:
    plan = plan_spans([make_chain("a", "exyh"), make_chain("b", "exyh")], merge=False)
    assert spell(plan, "a") == ["e", "x", "y", "h"]
    assert [span.models for span in plan.spans] == [("a", "b")] * 4
