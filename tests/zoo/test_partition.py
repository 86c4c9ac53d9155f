"""Blocks are cut where sharing demands it, and nowhere else."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from blockllm.zoo.partition import ChainLayer, partition


def layers(text: str, deltas: str = "") -> list[ChainLayer]:
    return [ChainLayer(digest, "decoder", digest in deltas) for digest in text]


def runs(*models: list[ChainLayer]) -> list[str]:
    return ["".join(run) for run in partition(models)]


def test_examples() -> None:
    assert runs(layers("abcd")) == ["abcd"]
    assert runs(layers("abcd"), layers("abcd")) == ["abcd"]
    assert runs(layers("abcd"), layers("abxy")) == ["ab", "cd", "xy"]
    assert runs(layers("abcd"), layers("bc")) == ["a", "bc", "d"]
    assert runs(layers("abcd"), layers("acbd")) == ["a", "b", "c", "d"]
    assert runs(layers("abcd"), layers("abcd", deltas="bc")) == ["a", "bc", "d"]
    assert runs(layers("aab")) == ["a", "b"]
    assert runs(layers("abab")) == ["ab"]
    assert runs() == []


def test_kinds_are_kept_apart() -> None:
    chain = [
        ChainLayer("e", "embed"),
        ChainLayer("a", "decoder"),
        ChainLayer("b", "decoder"),
        ChainLayer("h", "head"),
    ]
    assert runs(chain) == ["e", "ab", "h"]


MODEL = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), min_size=1, max_size=8).map(
    lambda pairs: [ChainLayer(digest, "decoder", delta) for digest, delta in pairs]
)


@given(st.lists(MODEL, max_size=5))
def test_partition_is_sound_and_minimal(models: list[list[ChainLayer]]) -> None:
    blocks = partition(models)
    digests = [digest for block in blocks for digest in block]
    assert sorted(digests) == sorted({layer.digest for model in models for layer in model})
    first = {block[0]: block for block in blocks}
    joints = set()
    for model in models:
        position, previous = 0, None
        while position < len(model):
            block = first[model[position].digest]  # a block is never entered in its middle
            part = model[position : position + len(block)]
            assert tuple(layer.digest for layer in part) == block
            assert len({layer.has_delta for layer in part}) == 1
            if previous:
                joints.add((previous, block))
            position, previous = position + len(block), block
    for left, right in joints:
        assert _must_be_cut(models, left[-1], right[0])


def _must_be_cut(models: list[list[ChainLayer]], left: str, right: str) -> bool:
    for model in models:
        padded = [None, *model, None]
        for one, other in pairwise(padded):
            here = one is not None and one.digest == left
            there = other is not None and other.digest == right
            if here != there:
                return True
            if here and one and other and one.has_delta != other.has_delta:
                return True
    return False
