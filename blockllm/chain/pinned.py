"""Chains that were resolved once and travel whole: a process that gets them looks no name up again.

chains → blocks and deltas, each once, by id + per chain its facts and its way over them → bytes
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from blockllm.core import Block, Chain, ChainEntry, Delta
from blockllm.errors import EngineError

MAX_BYTES = 512 << 20  # of encoded chains: several thousand adapters


class _Way(msgspec.Struct, frozen=True, array_like=True):
    """One chain: its facts without entries, and the ids of each entry's block and delta."""

    facts: Chain
    ids: tuple[tuple[str, str | None], ...]


class _Pinned(msgspec.Struct, frozen=True, array_like=True):
    blocks: dict[str, Block]
    deltas: dict[str, Delta]
    ways: tuple[_Way, ...]


def fingerprint(chain: Chain) -> str:
    """Names exactly the blocks and deltas that compute the chain's answers."""
    digest = hashlib.sha256()
    for entry in chain.entries:
        digest.update(f"{entry.block.id}+{entry.delta.id if entry.delta else ''};".encode())
    return f"fp_{digest.hexdigest()[:16]}"


def fingerprints(chains: Mapping[str, Chain]) -> dict[str, str]:
    """Of each chain, by model."""
    return {model: fingerprint(chain) for model, chain in chains.items()}


def encode_chains(chains: Iterable[Chain]) -> bytes:
    """The chains as bytes, what they share once. Raises EngineError when they are too many."""
    blocks: dict[str, Block] = {}
    deltas: dict[str, Delta] = {}
    ways = []
    for chain in chains:
        ids = []
        for block, delta in ((entry.block, entry.delta) for entry in chain.entries):
            blocks[block.id] = block
            if delta is not None:
                deltas[delta.id] = delta
            ids.append((block.id, delta.id if delta else None))
        ways.append(_Way(msgspec.structs.replace(chain, entries=()), tuple(ids)))
    data = msgspec.msgpack.encode(_Pinned(blocks, deltas, tuple(ways)))
    _check(len(data))
    return data


def decode_chains(data: bytes) -> dict[str, Chain]:
    """The chains by model; equal blocks are one object. Raises EngineError for other bytes."""
    _check(len(data))
    try:
        pinned = msgspec.msgpack.decode(data, type=_Pinned)
        return {way.facts.model: _chain(pinned, way) for way in pinned.ways}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError) as error:
        raise EngineError(f"pinned chains: not what an encoder of them writes: {error}") from error


def _chain(pinned: _Pinned, way: _Way) -> Chain:
    entries = tuple(
        ChainEntry(pinned.blocks[block], None if delta is None else pinned.deltas[delta])
        for block, delta in way.ids
    )
    return msgspec.structs.replace(way.facts, entries=entries)


def _check(size: int) -> None:
    if size > MAX_BYTES:
        raise EngineError(
            f"pinned chains: {size} bytes, allowed are {MAX_BYTES}: serve fewer models"
        )
