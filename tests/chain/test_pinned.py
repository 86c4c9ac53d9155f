"""Pinned chains travel whole, what they share once; anything else is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockllm.chain import decode_chains, encode_chains, fingerprint, fingerprints, pinned
from blockllm.core import (
    Block,
    Chain,
    ChainEntry,
    Delta,
    EmbedFunction,
    HeadFunction,
    Layer,
    LoraTarget,
    Tensor,
)
from blockllm.errors import EngineError


def tensor(name: str) -> Tensor:
    return Tensor(name * 64, "F32", (4, 8), "p" * 64, 128)


EMBED = Block("e", (Layer("le", EmbedFunction(8, 4), {"weight": tensor("1")}),))
HEAD = Block("h", (Layer("lh", HeadFunction(8, 4, 1e-5), {"weight": tensor("2")}),))
DELTA = Delta("d", {"0.embed": (LoraTarget(tensor("a"), tensor("b"), 1 / 3),)})
CHAINS = {
    "base": Chain("base", (ChainEntry(EMBED), ChainEntry(HEAD)), 64, (2, 3)),
    "lora": Chain("lora", (ChainEntry(EMBED, DELTA), ChainEntry(HEAD)), 64, (2,), "base"),
}


def test_chains_come_back_equal_and_share_their_blocks():
    found = decode_chains(encode_chains(CHAINS.values()))
    assert found == CHAINS
    assert list(found) == list(CHAINS)
    assert found["base"].entries[0].block is found["lora"].entries[0].block
    assert fingerprints(found) == fingerprints(CHAINS)


def test_a_shared_block_is_sent_once():
    many = [msgspec.structs.replace(CHAINS["lora"], model=f"m{i}") for i in range(100)]
    assert encode_chains(many).count(b"p" * 64) == 4  # once per tensor


def test_fingerprints_differ_by_block_and_by_delta():
    assert fingerprint(CHAINS["base"]) != fingerprint(CHAINS["lora"])
    renamed = msgspec.structs.replace(CHAINS["base"], model="x", max_context=1)
    assert fingerprint(renamed) == fingerprint(CHAINS["base"])


def test_both_ends_bound_the_size(monkeypatch: pytest.MonkeyPatch):
    data = encode_chains(CHAINS.values())
    monkeypatch.setattr(pinned, "MAX_BYTES", len(data) - 1)
    with pytest.raises(EngineError, match="serve fewer models"):
        encode_chains(CHAINS.values())
    with pytest.raises(EngineError, match="allowed are"):
        decode_chains(data)


@given(st.data())
def test_other_bytes_are_refused(data: st.DataObject):
    whole = bytearray(encode_chains(CHAINS.values()))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (bytes(whole), bytes(whole[:cut]), data.draw(st.binary(max_size=40))):
        try:
            found = decode_chains(damaged)
        except EngineError:
            continue
        assert all(isinstance(chain, Chain) for chain in found.values())


def test_a_block_that_is_not_there_is_refused():
    _, deltas, ways = msgspec.msgpack.decode(encode_chains(CHAINS.values()))
    with pytest.raises(EngineError, match="'e'"):
        decode_chains(msgspec.msgpack.encode([{}, deltas, ways]))
